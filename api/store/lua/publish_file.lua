-- Part of scripts that make uploaded files visible to their tenant.

-- Make a file visible. Returns false if its parts have expired.
-- file_key: hash, the file's fields. parts_key: hash, its parts. files_key: zset, ids of the
-- tenant's files by their creation in microseconds of Unix time. expiry_key: see prune_files.lua.
local function publish(file_key, parts_key, files_key, expiry_key, id, ttl, index_ttl, fields)
  local time = redis.call('TIME')
  if redis.call('EXPIRE', parts_key, ttl) == 0 then
    return false
  end
  redis.call('HSET', file_key, 'created_at', time[1], 'expires_at', time[1] + ttl, unpack(fields))
  redis.call('EXPIRE', file_key, ttl)
  redis.call('ZADD', files_key, time[1] * 1000000 + time[2], id)
  redis.call('EXPIRE', files_key, index_ttl)
  redis.call('ZADD', expiry_key, time[1] + ttl, id)
  return true
end
