-- Let a request wait in its group, unless it is known already.
-- Returns 1 when it was parked, 0 when it is waiting, in a job or completed.
--
-- KEYS[5] requests   hash  request id -> record
-- KEYS[6] groups     set   groups that were ever used
-- KEYS[7] outcome    text  exists once its completion began
-- ARGV    request id, record, now, group, its entry in KEYS[4]

local id, record, now, group, entry = unpack(ARGV)

if redis.call('EXISTS', KEYS[7]) == 1 or redis.call('HSETNX', KEYS[5], id, record) == 0 then
  return 0
end
redis.call('SADD', KEYS[6], group)
redis.call('HSET', KEYS[4], id, entry)
wait(id, now)
return 1
