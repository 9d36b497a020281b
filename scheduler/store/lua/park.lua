-- Adds requests to their group's backlog, unless the lane knows them already.
-- KEYS[1]  to KEYS[4]: see backlog.lua
-- KEYS[5]  requests: hash, request id -> record
-- KEYS[6]  groups: set, groups that ever had a request
-- KEYS[...] requests: two keys for each, its outcome, a string that exists once its completion began,
--           and its mark, a string that exists if its task is cancelled
-- ARGV[1]  now: Unix seconds
-- ARGV[2]  group: JSON, as stored in KEYS[6]
-- ARGV[...] requests: three arguments for each, its id, its record in JSON, and its size as KEYS[4] has it
-- Returns the requests that it has not parked: two texts for each, its id, and 'known' when it waits,
-- is in a job or was completed, 'cancelled' when it may not be parked any more.

local now, group = ARGV[1], ARGV[2]
local others, bytes, inputs, tokens = {}, 0, 0, 0

local function leave_out(id, why)
  others[#others + 1], others[#others + 2] = id, why
end

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('ZREM', KEYS[1], '')
for i = 1, (#ARGV - 2) / 3 do
  local outcome, mark = KEYS[5 + 2 * i], KEYS[6 + 2 * i]
  local id, record, size = ARGV[3 * i], ARGV[1 + 3 * i], ARGV[2 + 3 * i]
  if redis.call('EXISTS', outcome) == 1 or redis.call('HEXISTS', KEYS[5], id) == 1 then
    leave_out(id, 'known')
  elseif redis.call('EXISTS', mark) == 1 then
    leave_out(id, 'cancelled')
  else
    redis.call('HSET', KEYS[5], id, record)
    redis.call('HSET', KEYS[4], id, size)
    local b, n, t, deadline = string.match(size, '(%S+) (%S+) (%S+) (%S+)')
    redis.call('ZADD', KEYS[1], now, id)
    if tonumber(deadline) > 0 then
      redis.call('ZADD', KEYS[2], deadline, id)
    end
    bytes, inputs, tokens = bytes + b, inputs + n, tokens + t
  end
end
if inputs > 0 then
  redis.call('SADD', KEYS[6], group)
  add_to_totals(1, bytes, inputs, tokens)
end
return others
