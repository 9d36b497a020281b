-- Claims the completion of a request with its batch's answer or an error.
-- KEYS[1]  outcome: string, exists once the request's completion began
-- KEYS[2]  withdrawals: hash, request id -> decision
-- ARGV[1]  id: the request's
-- ARGV[2]  guard: seconds for which nobody but the caller may complete the request
-- Returns 'ours' when the caller must complete it; 'theirs' when it is being completed or
-- withdrawn; 'done' when it has left the lane.

local id, guard = unpack(ARGV)
local outcome = redis.call('GET', KEYS[1])

if outcome then
  return outcome == 'begun' and 'theirs' or 'done'
end
if redis.call('HEXISTS', KEYS[2], id) == 1 then
  return 'theirs'
end
-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('HDEL', KEYS[2], '')
redis.call('SET', KEYS[1], 'begun', 'EX', guard)
return 'ours'
