-- A request has its outcome: take it out of its place, for ever, and forget the rest of it.
-- Returns 1 when that is done, 0 when it is elsewhere: then nothing was changed.
--
-- KEYS[1] outcome    text  exists once its completion began
-- KEYS[2] requests   hash  request id -> record
-- KEYS[3] sizes      hash  request id -> "bytes inputs tokens deadline"
-- KEYS[4] failures   hash  request id -> tries that failed
-- KEYS[5] expiries   hash  request id -> batches that ended before it was executed
-- KEYS[6] leaving    hash  request id -> what was decided
-- KEYS[7] members    zset  request ids of its job, if it is in one
-- KEYS[8] waiting    zset  request id by the time since when it waits
-- KEYS[9] deadlines  zset  request id by its deadline
-- KEYS[10] totals    hash  bytes, inputs, tokens of what waits
-- ARGV    request id, outcome, seconds to remember it

local id = ARGV[1]

if redis.call('HEXISTS', KEYS[2], id) == 0 then
  return 1
end
if redis.call('ZREM', KEYS[8], id) == 1 then
  local bytes, inputs, tokens =
    string.match(redis.call('HGET', KEYS[3], id), '(%S+) (%S+) (%S+)')
  redis.call('HINCRBY', KEYS[10], 'bytes', -bytes)
  redis.call('HINCRBY', KEYS[10], 'inputs', -inputs)
  redis.call('HINCRBY', KEYS[10], 'tokens', -tokens)
  redis.call('ZREM', KEYS[9], id)
elseif redis.call('HDEL', KEYS[6], id) == 0 and redis.call('ZREM', KEYS[7], id) == 0 then
  return 0
end
for key = 2, 5 do
  redis.call('HDEL', KEYS[key], id)
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
return 1
