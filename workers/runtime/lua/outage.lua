-- Know outages of Redis by the gaps between the sweeps of all workers. After an outage every worker
-- must have the time to renew its leases before another worker takes them for expired: none expires
-- for one timeout. Before adopt.lua; ends the script while none may expire.
-- KEYS[5]  sweeps: hash, "last", the time of the last sweep of any worker, and "from", the time from
--            which leases may expire again
-- ARGV[1]  timeout: seconds without a renewal
-- Times are Unix seconds.

local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local last, from = unpack(redis.call('HMGET', KEYS[5], 'last', 'from'))
from = tonumber(from) or now
if last and now - last > ARGV[1] / 2 then
  from = now + ARGV[1]
end
redis.call('HSET', KEYS[5], 'last', now, 'from', from)
if now < from then
  return {}
end
