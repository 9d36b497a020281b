-- Renew the leases of a process.
--
-- KEYS[1]   zset    lease tag, by the server's time in seconds when the lease was last renewed
-- ARGV[1..] strings lease tags
--
-- Returns the tags that are no longer leased: acknowledged, or given to another worker.

-- A first write that a server out of memory does not refuse: the renewals after it then pass too.
redis.call('ZREM', KEYS[1], '')

local now = redis.call('TIME')[1]
local lost = {}
for _, tag in ipairs(ARGV) do
  if redis.call('ZSCORE', KEYS[1], tag) then
    redis.call('ZADD', KEYS[1], 'XX', now, tag)
  else
    lost[#lost + 1] = tag
  end
end
return lost
