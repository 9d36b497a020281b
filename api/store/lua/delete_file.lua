-- Delete a file of a tenant, or an unfinished upload.
-- KEYS[1] and KEYS[2]: see prune_files.lua
-- KEYS[3]  file: hash, its fields
-- KEYS[4]  parts: hash, its parts
-- KEYS[5]  files: zset, ids of the tenant's files
-- ARGV[1]  id: the file's
-- ARGV[2]  tenant: the owner; '' for an upload, which has none yet
-- Returns 'deleted', 'unknown', or 'read' while a batch reads the file.

local id, tenant = ARGV[1], ARGV[2]
local owner, readers = unpack(redis.call('HMGET', KEYS[3], 'tenant', 'readers'))

if (owner or '') ~= tenant then
  return 'unknown'
end
if tonumber(readers or 0) > 0 then
  return 'read'
end
redis.call('UNLINK', KEYS[3], KEYS[4])
redis.call('ZREM', KEYS[5], id)
forget(id)
return 'deleted'
