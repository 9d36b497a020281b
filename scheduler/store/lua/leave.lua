-- Take a request out of its group or job, to be completed otherwise than by a batch. Its decision is
-- written down with that: whoever dies over it, it stays decided.
-- Returns 'ours' when the caller is to complete it, 'theirs' when it is being completed or leaves
-- already, 'done', 'cancelled' or 'promoted' when it has left, 'unknown' when the lane never had it,
-- 'elsewhere' when it is not in this place: then nothing was changed.
--
-- KEYS[5] requests   hash  request id -> record
-- KEYS[6] leaving    hash  request id -> what was decided
-- KEYS[7] outcome    text  exists once its completion began
-- KEYS[8] members    zset  request ids of its job, if it is in one
-- ARGV    request id, decision, seconds for which its completion is the caller's

local id = ARGV[1]
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
if not take(id) and redis.call('ZREM', KEYS[8], id) == 0 then
  return 'elsewhere'
end
redis.call('HSET', KEYS[6], id, ARGV[2])
redis.call('SET', KEYS[7], 'begun', 'EX', ARGV[3])
return 'ours'
