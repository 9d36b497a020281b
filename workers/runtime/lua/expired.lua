-- List the leases that were not renewed for some time.
-- Keys and arguments: outage.lua and adopt.lua, which this follows.
-- Returns {tag, entry of the hash, tag, entry, ...}, longest expired first.

local tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', before, 'LIMIT', 0, ARGV[3])
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
