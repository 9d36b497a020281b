-- Take over the fleet's expired leases from the keys of kombu, where versions up to 0.1.0 kept them
-- and other Celery apps on the same database keep theirs: those are not touched. Before expired.lua;
-- follows outage.lua.
-- KEYS[1]  leases: hash, lease tag -> '[message, "", list it came from]'
-- KEYS[2]  renewals: zset, lease tag by the Unix seconds of its last renewal
-- KEYS[3]  kombu leases: hash, as KEYS[1]
-- KEYS[4]  kombu renewals: zset, as KEYS[2]
-- ARGV[1]  timeout: seconds without a renewal
-- ARGV[2]  limit: number of tags to read at most
-- ARGV[3]  limit: number of leases that expired.lua returns at most
-- What it took over is expired there too.

local OURS = '^' .. string.rep('%x', 32) .. '%-%d+$' -- a tag of kombu is a UUID with hyphens

for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', before, 'LIMIT', 0, ARGV[2])) do
  local entry = string.find(tag, OURS) and redis.call('HGET', KEYS[3], tag)
  if entry then
    redis.call('HSET', KEYS[1], tag, entry)
    redis.call('ZADD', KEYS[2], redis.call('ZSCORE', KEYS[4], tag), tag)
    redis.call('HDEL', KEYS[3], tag)
    redis.call('ZREM', KEYS[4], tag)
  end
end
