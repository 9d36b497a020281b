-- End a job that has no request left, and keep its record for a while.
-- Returns the requests that it still has (0: it is done), or -1 when the caller does not hold it.
--
-- KEYS[1] job      hash  its fields
-- KEYS[2] members  zset  the job's request ids by line
-- KEYS[3] jobs     zset  live jobs by the time when they are due
-- ARGV    token, intent, now, seconds to keep the record

if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then
  return -1
end
local left = redis.call('ZCARD', KEYS[2])
if left == 0 then
  redis.call('HSET', KEYS[1], 'state', 'DONE', 'since', ARGV[3])
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  redis.call('ZREM', KEYS[3], ARGV[2])
end
return left
