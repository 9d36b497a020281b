-- Move a job on, or keep it where it is, and say when it is due again.
-- Returns 1, or 0 when the caller no longer holds it.
--
-- KEYS[1] job   hash  its fields
-- KEYS[2] jobs  zset  live jobs by the time when they are due
-- ARGV    token, intent, state now, state then, due, then field, value, ...

local state, token = unpack(redis.call('HMGET', KEYS[1], 'state', 'token'))

-- A call that is repeated after its answer was lost finds the job where it put it.
if token ~= ARGV[1] or (state ~= ARGV[3] and state ~= ARGV[4]) then
  return 0
end
redis.call('HSET', KEYS[1], 'state', ARGV[4], unpack(ARGV, 6))
redis.call('ZADD', KEYS[2], ARGV[5], ARGV[2])
return 1
