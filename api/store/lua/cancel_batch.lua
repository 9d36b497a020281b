-- Ask for the end of a batch.
-- KEYS[1]  batch: hash, its fields
-- ARGV[1]  tenant: the owner
-- Returns the status that the batch had, or false if the tenant has no such batch.

local tenant, status = unpack(redis.call('HMGET', KEYS[1], 'tenant', 'status'))

if tenant ~= ARGV[1] then
  return false
end
if status == 'validating' or status == 'in_progress' then
  -- A server out of memory allows this write, and then also those that follow it in the script.
  redis.call('HDEL', KEYS[1], '')
  redis.call('HSET', KEYS[1], 'status', 'cancelling', 'cancelling_at', redis.call('TIME')[1])
end
return status
