-- Begin to complete a request out of turn, if the lane has it.
-- Returns 'ours' when the caller is to complete it, 'theirs' when somebody else does just now,
-- 'done' or 'cancelled' when it has its outcome, 'unknown' when the lane never had it.
--
-- KEYS[1] outcome   text  exists once its completion began
-- KEYS[2] requests  hash  request id -> record
-- ARGV    request id, seconds for which it is the caller's

local outcome = redis.call('GET', KEYS[1])

if outcome then
  return outcome == 'begun' and 'theirs' or outcome
end
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then
  return 'unknown'
end
redis.call('SET', KEYS[1], 'begun', 'EX', ARGV[2])
return 'ours'
