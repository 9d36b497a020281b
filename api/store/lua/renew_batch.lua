-- Keep a claimed batch, or return it for later, and write its progress.
-- KEYS[1]  due: see create_batch.lua
-- KEYS[2]  owners: see claim_batch.lua
-- KEYS[3]  batch: hash, its fields
-- ARGV[1]  member: '<id> <tenant>'
-- ARGV[2]  token: the caller's
-- ARGV[3]  lease: seconds until another process may claim the batch
-- ARGV[4]  status: the new one, unless the batch is being cancelled; '' for no change
-- ARGV[5] and on: field, value, ... of the batch
-- Returns the status and the server's Unix seconds, or false if another process has the batch.

local member, token, lease, status = unpack(ARGV, 1, 4)
local now = tonumber(redis.call('TIME')[1])

if redis.call('HGET', KEYS[2], member) ~= token then
  return false
end
redis.call('ZADD', KEYS[1], now + tonumber(lease), member)
local present = redis.call('HGET', KEYS[3], 'status')
if not present then -- it has expired
  return { '', now }
end
if status ~= '' and present ~= 'cancelling' then
  present = status
  redis.call('HSET', KEYS[3], 'status', status, status .. '_at', now)
end
if #ARGV > 4 then
  redis.call('HSET', KEYS[3], unpack(ARGV, 5))
end
return { present, now }
