-- Claims the completion of requests with their batch's answers or with errors.
-- KEYS[1]  withdrawals: hash, request id -> decision
-- KEYS[...] outcomes: string, of each request; it exists once the request's completion began
-- ARGV[1]  guard: seconds for which nobody but the caller may complete the requests
-- ARGV[...] ids: the requests'
-- Returns for each request 'ours' when the caller must complete it; 'theirs' when it is being
-- completed or withdrawn; 'done' when it has left the lane.

local guard, owners = ARGV[1], {}

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('HDEL', KEYS[1], '')
for i = 1, #KEYS - 1 do
  local outcome = redis.call('GET', KEYS[1 + i])
  if outcome then
    owners[i] = outcome == 'begun' and 'theirs' or 'done'
  elseif redis.call('HEXISTS', KEYS[1], ARGV[1 + i]) == 1 then
    owners[i] = 'theirs'
  else
    redis.call('SET', KEYS[1 + i], 'begun', 'EX', guard)
    owners[i] = 'ours'
  end
end
return owners
