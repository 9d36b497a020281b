-- List the leases that were not renewed for some time.
-- Keys and arguments: outage.lua and adopt.lua, which this follows.
-- Returns {tag, entry of the hash, tag, entry, ...}, longest expired first: not all at once.

local MAX_BYTES = 2 ^ 22 -- of entries: a few milliseconds of the server's time

local tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', before, 'LIMIT', 0, ARGV[3])
local expired, bytes = {}, 0
for _, tag in ipairs(tags) do
  if bytes >= MAX_BYTES then
    break
  end
  local entry = redis.call('HGET', KEYS[1], tag)
  if entry then
    bytes = bytes + #entry
    expired[#expired + 1] = tag
    expired[#expired + 1] = entry
  else
    redis.call('ZREM', KEYS[2], tag)
  end
end
return expired
