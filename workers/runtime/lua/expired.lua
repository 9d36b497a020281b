-- List the leases that nobody has renewed for a while.
--
-- KEYS[1]  hash    lease tag -> '[message, "", list it came from]'
-- KEYS[2]  zset    lease tag, by the server's time in seconds when the lease was last renewed
-- ARGV[1]  number  seconds without renewal
-- ARGV[2]  number  how many to return at most
--
-- Returns {tag, entry, tag, entry, ...}, longest expired first.

local before = redis.call('TIME')[1] - ARGV[1]
local tags = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', before, 'LIMIT', 0, ARGV[2])
local found = {}
for _, tag in ipairs(tags) do
  local entry = redis.call('HGET', KEYS[1], tag)
  if entry then
    found[#found + 1] = tag
    found[#found + 1] = entry
  else
    redis.call('ZREM', KEYS[2], tag)
  end
end
return found
