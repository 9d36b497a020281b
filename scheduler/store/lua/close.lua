-- End a job that has no request left, give back the tokens that it reserved, and keep its record for
-- a while.
-- Returns the requests that it still has (0: it is done), or -1 when the caller does not hold it.
--
-- KEYS[1] job       hash  its fields
-- KEYS[2] members   zset  the job's request ids by line
-- KEYS[3] jobs      zset  live jobs by the time when they are due
-- KEYS[4] reserved  hash  queue -> tokens of the live jobs in it
-- ARGV    token, intent, now, seconds to keep the record, queue

local state, token, tokens = unpack(redis.call('HMGET', KEYS[1], 'state', 'token', 'tokens'))

if token ~= ARGV[1] then
  return -1
end
local left = redis.call('ZCARD', KEYS[2])
if left == 0 and state ~= 'DONE' then
  redis.call('HSET', KEYS[1], 'state', 'DONE', 'since', ARGV[3])
  redis.call('EXPIRE', KEYS[1], ARGV[4])
  redis.call('ZREM', KEYS[3], ARGV[2])
  redis.call('HINCRBY', KEYS[4], ARGV[5], -tokens)
end
return left
