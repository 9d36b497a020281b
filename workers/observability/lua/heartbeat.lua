-- Record whether a worker serves a queue, and its throughput; remove workers without a recent
-- heartbeat.
-- KEYS[1]  heartbeat: string, exists while a worker serves the queue
-- KEYS[2]  throughputs: hash, worker id -> '<requests/s at full load> <server time, Unix s>'
-- KEYS[3]  workers: zset, id of a worker that serves the queue by the server time, in Unix seconds,
--          of its last heartbeat
-- KEYS[4]  catalogue, and KEYS[5] its version: as in publish_catalogue.lua
-- ARGV[1]  worker id: string
-- ARGV[2]  throughput: requests/s, '' if unknown
-- ARGV[3]  expiry: seconds after its last heartbeat until a worker counts as gone
-- ARGV[4]  serves: '1', or '0' if the worker does not serve the queue any more
-- Returns the server's time, as TIME does, and the version of the catalogue; '' if it has none, or
-- there is no catalogue.

local id, rate, expiry = ARGV[1], ARGV[2], tonumber(ARGV[3])
local time = redis.call('TIME')
local now = tonumber(time[1])

redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', '(' .. now - expiry)
if ARGV[4] == '1' then
  redis.call('SET', KEYS[1], 1, 'EX', expiry)
  redis.call('HSET', KEYS[2], id, rate .. ' ' .. now)
  redis.call('ZADD', KEYS[3], now, id)
else
  redis.call('HDEL', KEYS[2], id)
  redis.call('ZREM', KEYS[3], id)
  if redis.call('EXISTS', KEYS[3]) == 0 then
    redis.call('DEL', KEYS[1])
  end
end

local entries = redis.call('HGETALL', KEYS[2])
for i = 1, #entries, 2 do
  local its_rate, at = string.match(entries[i + 1], '^(%S*) (%d+)$')
  if its_rate == '' or tonumber(at) < now - expiry then
    redis.call('HDEL', KEYS[2], entries[i])
  end
end
redis.call('EXPIRE', KEYS[2], expiry)
redis.call('EXPIRE', KEYS[3], expiry)
time[3] = redis.call('EXISTS', KEYS[4]) == 1 and redis.call('GET', KEYS[5]) or ''
return time
