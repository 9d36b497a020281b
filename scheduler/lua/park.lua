-- Let a request wait in its group, unless it is known already.
-- Returns 1 when it was parked, 0 when it is waiting, in a job or completed.
--
-- KEYS[1] requests   hash  request id -> record
-- KEYS[2] sizes      hash  request id -> "bytes inputs tokens deadline", deadline 0 for none
-- KEYS[3] outcome    text  exists once its completion began
-- KEYS[4] groups     set   groups that were ever used
-- KEYS[5] waiting    zset  request id by the time since when it waits
-- KEYS[6] deadlines  zset  request id by its deadline, those that have one
-- KEYS[7] totals     hash  bytes, inputs, tokens of what waits
-- ARGV    request id, record, now, group, bytes, inputs, tokens, deadline

local id, record, now, group = unpack(ARGV, 1, 4)
local bytes, inputs, tokens, deadline = unpack(ARGV, 5, 8)

if redis.call('EXISTS', KEYS[3]) == 1 or redis.call('HSETNX', KEYS[1], id, record) == 0 then
  return 0
end
redis.call('HSET', KEYS[2], id, table.concat({ bytes, inputs, tokens, deadline }, ' '))
redis.call('SADD', KEYS[4], group)
redis.call('ZADD', KEYS[5], now, id)
if tonumber(deadline) > 0 then
  redis.call('ZADD', KEYS[6], deadline, id)
end
redis.call('HINCRBY', KEYS[7], 'bytes', bytes)
redis.call('HINCRBY', KEYS[7], 'inputs', inputs)
redis.call('HINCRBY', KEYS[7], 'tokens', tokens)
return 1
