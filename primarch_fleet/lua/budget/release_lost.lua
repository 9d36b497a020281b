-- Remove the reservations of a tenant's tasks that are nowhere any more: their messages were lost,
-- as by a Redis that went back. Keys and clock: ledger.lua.
-- KEYS[6]    open: zset, ids of tasks that were submitted and have no outcome yet
-- KEYS[7]    leased tasks: zset, '<task id>\0<lease tag>', all of score 0
-- KEYS[8]    parked: hash, request id -> record
-- ARGV[2]    grace: seconds since the reservation for which a task need be nowhere
-- ARGV[...]  tasks: two arguments for each, its id and its request id
-- Returns the ids of the tasks whose reservations were removed.

local latest = clock(ARGV[1]) - ARGV[2]
local lost = {}
for i = 3, #ARGV, 2 do
  local id = ARGV[i]
  local reserved_at = tonumber(redis.call('ZSCORE', KEYS[3], id))
  local first, last = '[' .. id .. '\0', '(' .. id .. '\1'
  if
    reserved_at
    and reserved_at <= latest
    and not redis.call('ZSCORE', KEYS[6], id)
    and #redis.call('ZRANGEBYLEX', KEYS[7], first, last, 'LIMIT', 0, 1) == 0
    and redis.call('HEXISTS', KEYS[8], ARGV[i + 1]) == 0
  then
    release(id)
    lost[#lost + 1] = id
  end
end
return lost
