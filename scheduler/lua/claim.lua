-- Cut a job: move the oldest requests of a group into it, as many as fit and at least one, and write
-- the job down, leased to the caller. Requests past their deadline stay behind.
-- Returns the job's fencing token, or false when there was nothing to take.
--
-- KEYS[1] waiting    zset  request id by the time since when it waits
-- KEYS[2] deadlines  zset  request id by its deadline
-- KEYS[3] totals     hash  bytes, inputs of what waits
-- KEYS[4] sizes      hash  request id -> "bytes inputs deadline"
-- KEYS[5] members    zset  the job's request ids by their line in the file, from 1
-- KEYS[6] job        hash  its fields
-- KEYS[7] jobs       zset  live jobs by the time when they are due
-- KEYS[8] fence      text  the last token given
-- ARGV    intent, now, lease until, most requests, most inputs, most bytes, then field, value, ...

local intent, now, lease_until = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local most_requests, most_inputs, most_bytes =
  tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local taken, bytes, inputs, earliest = 0, 0, 0, 0

for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, most_requests - 1)) do
  local b, i, d = string.match(redis.call('HGET', KEYS[4], id), '(%S+) (%S+) (%S+)')
  local deadline = tonumber(d)
  if deadline == 0 or deadline > now then
    if taken > 0 and (bytes + b > most_bytes or inputs + i > most_inputs) then
      break
    end
    taken, bytes, inputs = taken + 1, bytes + b, inputs + i
    if deadline > 0 and (earliest == 0 or deadline < tonumber(earliest)) then
      earliest = d
    end
    redis.call('ZREM', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
    redis.call('ZADD', KEYS[5], taken, id)
  end
end
if taken == 0 then
  return false
end

redis.call('HINCRBY', KEYS[3], 'bytes', -bytes)
redis.call('HINCRBY', KEYS[3], 'inputs', -inputs)
local token = redis.call('INCR', KEYS[8])
redis.call('HSET', KEYS[6], 'state', 'PREPARED', 'token', token, 'lease_until', lease_until,
  'created_at', ARGV[2], 'since', ARGV[2], 'requests', taken, 'deadline', earliest,
  unpack(ARGV, 7))
redis.call('ZADD', KEYS[7], ARGV[2], intent)
return tostring(token)
