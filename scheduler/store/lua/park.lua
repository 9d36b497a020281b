-- Adds a request to its group's backlog, unless the lane knows it already.
-- KEYS[1]  to KEYS[4]: see backlog.lua
-- KEYS[5]  requests: hash, request id -> record
-- KEYS[6]  groups: set, groups that ever had a request
-- KEYS[7]  outcome: string, exists once the request's completion began
-- KEYS[8]  mark: string, exists if the request's task is cancelled
-- ARGV[1]  id: the request's
-- ARGV[2]  record: JSON
-- ARGV[3]  now: Unix seconds
-- ARGV[4]  group: JSON, as stored in KEYS[6]
-- ARGV[5]  size: as stored in KEYS[4]
-- Returns 'parked'; 'known' when it waits, is in a job or was completed; 'cancelled' when it may not
-- be parked any more.

local id, record, now, group, size = unpack(ARGV)

if redis.call('EXISTS', KEYS[7]) == 1 or redis.call('HEXISTS', KEYS[5], id) == 1 then
  return 'known'
end
if redis.call('EXISTS', KEYS[8]) == 1 then
  return 'cancelled'
end
-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('ZREM', KEYS[1], '')
redis.call('HSET', KEYS[5], id, record)
redis.call('SADD', KEYS[6], group)
redis.call('HSET', KEYS[4], id, size)
add_to_backlog(id, now)
return 'parked'
