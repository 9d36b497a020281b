-- Removes a request from its group or job, to be completed in another way than by a batch.
-- The decision is stored in the same step, so that it stays when the caller dies.
-- KEYS[1]  to KEYS[4]: see backlog.lua
-- KEYS[5]  requests: hash, request id -> record
-- KEYS[6]  withdrawals: hash, request id -> decision
-- KEYS[7]  outcome: string, exists once the request's completion began
-- KEYS[8]  members: zset, request id -> its line; of the job that the request may be in
-- ARGV[1]  id: the request's
-- ARGV[2]  decision: what KEYS[6] stores
-- ARGV[3]  guard: seconds for which nobody but the caller may complete the request
-- Returns 'ours' when the caller must complete it; 'theirs' when it is being completed or
-- withdrawn; 'done', 'cancelled' or 'promoted' when it has left the lane; 'unknown' when the lane
-- never had it; 'elsewhere' when it is in another group or job and nothing was changed.

local id, decision, guard = unpack(ARGV)
local outcome = redis.call('GET', KEYS[7])

if outcome then
  return outcome == 'begun' and 'theirs' or outcome
end
if redis.call('HEXISTS', KEYS[5], id) == 0 then
  return 'unknown'
end
if redis.call('HEXISTS', KEYS[6], id) == 1 then
  return 'theirs'
end
if not remove_from_backlog(id) and redis.call('ZREM', KEYS[8], id) == 0 then
  return 'elsewhere'
end
redis.call('HSET', KEYS[6], id, decision)
redis.call('SET', KEYS[7], 'begun', 'EX', guard)
return 'ours'
