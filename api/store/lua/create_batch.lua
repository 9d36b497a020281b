-- Create a batch whose input is a file of the same tenant. The file is kept until the batch ends.
-- KEYS[1]  batch: hash, its fields
-- KEYS[2]  batches: zset, ids of the tenant's batches by their creation in microseconds of Unix
--          time
-- KEYS[3]  due: zset, '<id> <tenant>' of unfinished batches by the Unix seconds from which any
--          process may claim them
-- KEYS[4]  file: hash, the fields of the input
-- KEYS[5]  parts: hash, the input's content
-- KEYS[6]  expiry: zset, ids of the tenant's files by their end
-- ARGV[1]  id: the batch's
-- ARGV[2]  tenant: the owner
-- ARGV[3]  fingerprint: of what the client has sent
-- ARGV[4]  max batches: of a tenant
-- ARGV[5]  file id: of the input
-- ARGV[6]  file TTL: seconds for which the file is kept at least
-- ARGV[7]  batch TTL: seconds for which an unfinished batch is kept
-- ARGV[8]  window: seconds until the batch expires
-- ARGV[9] and on: field, value, ... of the batch
-- Returns 'created'; 'exists' or 'conflict' if the id was created before, by the same or by another
-- call; 'no file'; or 'full', the tenant has too many batches.

local id, tenant, fingerprint = ARGV[1], ARGV[2], ARGV[3]
local time = redis.call('TIME')
local now = tonumber(time[1])

local before = redis.call('HGET', KEYS[1], 'fingerprint')
if before then
  return before == fingerprint and 'exists' or 'conflict'
end
local owner, purpose, expires_at =
  unpack(redis.call('HMGET', KEYS[4], 'tenant', 'purpose', 'expires_at'))
if owner ~= tenant or purpose ~= 'batch' then
  return 'no file'
end
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', (now - tonumber(ARGV[7])) * 1000000)
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[4]) then
  return 'full'
end

redis.call('HSET', KEYS[1], 'fingerprint', fingerprint, 'status', 'validating', 'created_at', now,
  'expires_at', now + tonumber(ARGV[8]), unpack(ARGV, 9))
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call('ZADD', KEYS[2], time[1] * 1000000 + time[2], id)
redis.call('EXPIRE', KEYS[2], ARGV[7])
redis.call('ZADD', KEYS[3], now, id .. ' ' .. tenant)
redis.call('HINCRBY', KEYS[4], 'readers', 1)
local kept_until = now + tonumber(ARGV[6])
if tonumber(expires_at) < kept_until then
  redis.call('HSET', KEYS[4], 'expires_at', kept_until)
  redis.call('ZADD', KEYS[6], kept_until, ARGV[5])
  redis.call('EXPIRE', KEYS[4], ARGV[6])
  redis.call('EXPIRE', KEYS[5], ARGV[6])
end
return 'created'
