-- A cancelled request is completed: take it out of its group or job, and forget the rest of it.
-- Returns 1 when that is done, 0 when it is elsewhere: then nothing was changed.
--
-- KEYS[1] outcome    text  exists once its completion began
-- KEYS[2] requests   hash  request id -> record
-- KEYS[3] sizes      hash  request id -> "bytes inputs deadline"
-- KEYS[4] failures   hash  request id -> tries that failed
-- KEYS[5] expiries   hash  request id -> batches that ended before it was executed
-- KEYS[6] members    zset  request ids of its job, if it is in one
-- KEYS[7] waiting    zset  request id by the time since when it waits
-- KEYS[8] deadlines  zset  request id by its deadline
-- KEYS[9] totals     hash  bytes, inputs of what waits
-- ARGV    request id, seconds to remember

local id = ARGV[1]

if redis.call('HEXISTS', KEYS[2], id) == 0 then
  return 1
end
if redis.call('ZREM', KEYS[7], id) == 1 then
  local bytes, inputs = string.match(redis.call('HGET', KEYS[3], id), '(%S+) (%S+)')
  redis.call('HINCRBY', KEYS[9], 'bytes', -bytes)
  redis.call('HINCRBY', KEYS[9], 'inputs', -inputs)
  redis.call('ZREM', KEYS[8], id)
elseif redis.call('ZREM', KEYS[6], id) == 0 then
  return 0
end
for key = 2, 5 do
  redis.call('HDEL', KEYS[key], id)
end
redis.call('SET', KEYS[1], 'cancelled', 'EX', ARGV[2])
return 1
