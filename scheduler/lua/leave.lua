-- Take a request out of its group or job, to be completed otherwise than by a batch. Its decision is
-- written down with that: whoever dies over it, it stays decided.
-- Returns 'ours' when the caller is to complete it, 'theirs' when it is being completed or leaves
-- already, 'done', 'cancelled' or 'promoted' when it has left, 'unknown' when the lane never had it,
-- 'elsewhere' when it is not in this place: then nothing was changed.
--
-- KEYS[1] outcome    text  exists once its completion began
-- KEYS[2] requests   hash  request id -> record
-- KEYS[3] leaving    hash  request id -> what was decided
-- KEYS[4] sizes      hash  request id -> "bytes inputs tokens deadline"
-- KEYS[5] members    zset  request ids of its job, if it is in one
-- KEYS[6] waiting    zset  request id by the time since when it waits
-- KEYS[7] deadlines  zset  request id by its deadline
-- KEYS[8] totals     hash  bytes, inputs, tokens of what waits
-- ARGV    request id, decision, seconds for which its completion is the caller's

local id = ARGV[1]
local outcome = redis.call('GET', KEYS[1])

if outcome then
  return outcome == 'begun' and 'theirs' or outcome
end
if redis.call('HEXISTS', KEYS[2], id) == 0 then
  return 'unknown'
end
if redis.call('HEXISTS', KEYS[3], id) == 1 then
  return 'theirs'
end
if redis.call('ZREM', KEYS[6], id) == 1 then
  local bytes, inputs, tokens =
    string.match(redis.call('HGET', KEYS[4], id), '(%S+) (%S+) (%S+)')
  redis.call('HINCRBY', KEYS[8], 'bytes', -bytes)
  redis.call('HINCRBY', KEYS[8], 'inputs', -inputs)
  redis.call('HINCRBY', KEYS[8], 'tokens', -tokens)
  redis.call('ZREM', KEYS[7], id)
elseif redis.call('ZREM', KEYS[5], id) == 0 then
  return 'elsewhere'
end
redis.call('HSET', KEYS[3], id, ARGV[2])
redis.call('SET', KEYS[1], 'begun', 'EX', ARGV[3])
return 'ours'
