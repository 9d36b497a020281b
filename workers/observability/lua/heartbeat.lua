-- Record that a worker is alive, and its throughput; remove workers without a recent heartbeat.
-- KEYS[1]  heartbeat: string, exists while a worker serves the queue
-- KEYS[2]  throughputs: hash, worker id -> '<requests/s at full load> <server time, Unix s>'
-- ARGV[1]  worker id: string
-- ARGV[2]  throughput: requests/s, '' if unknown
-- ARGV[3]  expiry: seconds after its last heartbeat until a worker counts as gone
-- Returns nothing.

local now = tonumber(redis.call('TIME')[1])
redis.call('SET', KEYS[1], 1, 'EX', ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ' ' .. now)
local entries = redis.call('HGETALL', KEYS[2])
for i = 1, #entries, 2 do
  local rate, at = string.match(entries[i + 1], '^(%S*) (%d+)$')
  if rate == '' or tonumber(at) < now - ARGV[3] then
    redis.call('HDEL', KEYS[2], entries[i])
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[3])
