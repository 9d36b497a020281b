-- Begin to complete a request with what became of its batch, or of its deadline.
-- Returns 'ours' when the caller is to complete it, 'theirs' when somebody else does or it leaves the
-- lane otherwise, 'done' when it has left.
--
-- KEYS[1] outcome  text  exists once its completion began
-- KEYS[2] leaving  hash  request id -> what was decided
-- ARGV    request id, seconds for which its completion is the caller's

local outcome = redis.call('GET', KEYS[1])

if outcome then
  return outcome == 'begun' and 'theirs' or 'done'
end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 1 then
  return 'theirs'
end
redis.call('SET', KEYS[1], 'begun', 'EX', ARGV[2])
return 'ours'
