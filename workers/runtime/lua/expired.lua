-- List the leases that were not renewed for some time.
-- KEYS[1]  leases: hash, lease tag -> '[message, "", list it came from]'
-- KEYS[2]  renewals: zset, lease tag by the Unix seconds of its last renewal
-- ARGV[1]  timeout: seconds without a renewal
-- ARGV[2]  limit: number of leases to return at most
-- Returns {tag, entry of the hash, tag, entry, ...}, longest expired first.

local before = redis.call('TIME')[1] - ARGV[1]
local tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', before, 'LIMIT', 0, ARGV[2])
local expired = {}
for _, tag in ipairs(tags) do
  local entry = redis.call('HGET', KEYS[1], tag)
  if entry then
    expired[#expired + 1] = tag
    expired[#expired + 1] = entry
  else
    redis.call('ZREM', KEYS[2], tag)
  end
end
return expired
