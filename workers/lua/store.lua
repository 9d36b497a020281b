-- Store and announce a task's result in one step, unless something is stored already.
--
-- KEYS[1]  string  the result, as Celery keeps it
-- KEYS[2]  channel of the same name: who waits for the result listens to it
-- ARGV[1]  string  the result
-- ARGV[2]  number  seconds that it is kept; 0 for ever
--
-- Returns 1, or 0 when there is something: then nothing has changed.

local stored
if tonumber(ARGV[2]) > 0 then
  stored = redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2], 'NX')
else
  stored = redis.call('SET', KEYS[1], ARGV[1], 'NX')
end
if not stored then
  return 0
end
redis.call('PUBLISH', KEYS[2], ARGV[1])
return 1
