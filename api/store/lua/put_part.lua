-- Store a part of a file that is uploaded, if the tenant has room for it.
-- KEYS[1] and KEYS[2]: see prune_files.lua
-- KEYS[3]  parts: hash, number of the part from 0 -> its bytes
-- ARGV[1]  id: the file's
-- ARGV[2]  number: of the part
-- ARGV[3]  part: bytes
-- ARGV[4]  max bytes: of all files of the tenant, 0 for no limit
-- ARGV[5]  max files: of the tenant, 0 for no limit
-- ARGV[6]  upload TTL: seconds until the next part, or the end of the upload, must be there
-- ARGV[7]  index TTL: seconds for which the tenant's sum is kept at least
-- Returns 'stored', 'bytes' or 'files': which limit has no room for the part.

local id, number, part = ARGV[1], ARGV[2], ARGV[3]
local max_bytes, max_files = tonumber(ARGV[4]), tonumber(ARGV[5])
local now = tonumber(redis.call('TIME')[1])

prune(now)
if max_bytes > 0 and tonumber(redis.call('HGET', KEYS[2], 'total') or 0) + #part > max_bytes then
  return 'bytes'
end
if max_files > 0 and not redis.call('ZSCORE', KEYS[1], id)
  and redis.call('ZCARD', KEYS[1]) >= max_files then
  return 'files'
end
redis.call('HSET', KEYS[3], number, part)
redis.call('EXPIRE', KEYS[3], ARGV[6])
redis.call('HINCRBY', KEYS[2], id, #part)
redis.call('HINCRBY', KEYS[2], 'total', #part)
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[6]), id)
redis.call('EXPIRE', KEYS[1], ARGV[7])
redis.call('EXPIRE', KEYS[2], ARGV[7])
return 'stored'
