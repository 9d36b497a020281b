-- Say that a worker is alive, and how fast it is; forget those that have not said so for too long.
--
-- KEYS[1]  string  exists while a worker serves the queue
-- KEYS[2]  hash    worker -> its rate, a space, and the server's time in seconds when it said so
-- ARGV[1]  string  the worker
-- ARGV[2]  string  its rate in requests a second; '' if it does not know
-- ARGV[3]  number  seconds after its last beat until a worker counts as gone

local now = tonumber(redis.call('TIME')[1])
redis.call('SET', KEYS[1], 1, 'EX', ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2] .. ' ' .. now)
local said = redis.call('HGETALL', KEYS[2])
for i = 1, #said, 2 do
  local rate, at = string.match(said[i + 1], '^(%S*) (%d+)$')
  if rate == '' or tonumber(at) < now - ARGV[3] then
    redis.call('HDEL', KEYS[2], said[i])
  end
end
redis.call('EXPIRE', KEYS[2], ARGV[3])
