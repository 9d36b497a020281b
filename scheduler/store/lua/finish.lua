-- A request has its outcome: take it out of its place, for ever, and forget the rest of it.
-- Returns 1 when that is done, 0 when it is elsewhere: then nothing was changed.
--
-- KEYS[5] requests   hash  request id -> record
-- KEYS[6] failures   hash  request id -> tries that failed
-- KEYS[7] expiries   hash  request id -> batches that ended before it was executed
-- KEYS[8] leaving    hash  request id -> what was decided
-- KEYS[9] outcome    text  exists once its completion began
-- KEYS[10] members   zset  request ids of its job, if it is in one
-- ARGV    request id, outcome, seconds to remember it

local id = ARGV[1]

if redis.call('HEXISTS', KEYS[5], id) == 0 then
  return 1
end
if not take(id) and redis.call('HDEL', KEYS[8], id) == 0
  and redis.call('ZREM', KEYS[10], id) == 0 then
  return 0
end
for key = 4, 7 do
  redis.call('HDEL', KEYS[key], id)
end
redis.call('SET', KEYS[9], ARGV[2], 'EX', ARGV[3])
return 1
