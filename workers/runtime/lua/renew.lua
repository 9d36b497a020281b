-- Renew the leases of a process.
-- KEYS[1]    renewals: zset, lease tag by the Unix seconds of its last renewal
-- ARGV[...]  tags: string, the leases
-- Returns the tags that are not leased any more: acknowledged, or leased to another worker.

-- A server out of memory allows this write, and then also those that follow it in the script.
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
