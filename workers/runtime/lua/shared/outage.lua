-- Know outages of Redis by the gaps between the sweeps of all workers. No worker could renew its
-- leases then, so these seconds do not count: a lease expires later by the length of the outages
-- that it met, but not later than half a timeout after the last one. A live worker has renewed its
-- leases until then. Before adopt.lua.
-- KEYS[5]  sweeps: hash, "last", the time of the last sweep of any worker; "outage_end", when the
--            last outage ended; "outage_seconds", of it and those before it that were so near that a
--            lease may have met them, too
-- ARGV[1]  timeout: seconds without a renewal
-- Times are Unix seconds. `before` is the time of the last renewal before which a lease is expired.

local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local last, outage_end, outage_seconds =
  unpack(redis.call('HMGET', KEYS[5], 'last', 'outage_end', 'outage_seconds'))
outage_end, outage_seconds = tonumber(outage_end) or 0, tonumber(outage_seconds) or 0
local half = ARGV[1] / 2
local is_outage = last and now - last > half
if (is_outage and last or now) - outage_end > half then
  outage_seconds = 0
end
if is_outage then
  outage_end, outage_seconds = now, outage_seconds + now - last
end
-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('ZREM', KEYS[2], '')
redis.call('HSET', KEYS[5], 'last', now, 'outage_end', outage_end, 'outage_seconds', outage_seconds)
local before = time[1] - ARGV[1] - outage_seconds
