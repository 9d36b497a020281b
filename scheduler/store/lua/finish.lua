-- Removes a completed request from the lane and remembers its outcome.
-- KEYS[1]  to KEYS[4]: see backlog.lua
-- KEYS[5]  requests: hash, request id -> record
-- KEYS[6]  failures: hash, request id -> failed attempts
-- KEYS[7]  expiries: hash, request id -> batches that ended before it was executed
-- KEYS[8]  holds: hash, request id -> refusals of the account
-- KEYS[9]  withdrawals: hash, request id -> decision
-- KEYS[10] outcome: string, exists once the request's completion began
-- KEYS[11] members: zset, request id -> its line; of the job that the request may be in
-- ARGV[1]  id: the request's
-- ARGV[2]  outcome: what KEYS[10] stores
-- ARGV[3]  ttl: seconds to remember it
-- Returns 1 when it has left the lane; 0 when it is in another group or job, then nothing changed.

local id, outcome, ttl = unpack(ARGV)

if redis.call('HEXISTS', KEYS[5], id) == 0 then
  return 1
end
local removed = remove_from_backlog(id)
  or redis.call('HDEL', KEYS[9], id) == 1
  or redis.call('ZREM', KEYS[11], id) == 1
if not removed then
  return 0
end
redis.call('HDEL', KEYS[4], id)
redis.call('HDEL', KEYS[5], id)
redis.call('HDEL', KEYS[6], id)
redis.call('HDEL', KEYS[7], id)
redis.call('HDEL', KEYS[8], id)
redis.call('SET', KEYS[10], outcome, 'EX', ttl)
return 1
