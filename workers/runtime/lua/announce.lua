-- Store and announce a task's state in one step, unless something is stored already.
--
-- KEYS[1]  string  the state, as Celery keeps it
-- KEYS[2]  channel of the same name: who waits for the result listens to it
-- ARGV[1]  string  the state
-- ARGV[2]  number  seconds that it is kept; 0 for ever

local stored
if tonumber(ARGV[2]) > 0 then
  stored = redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2], 'NX')
else
  stored = redis.call('SET', KEYS[1], ARGV[1], 'NX')
end
if stored then
  redis.call('PUBLISH', KEYS[2], ARGV[1])
end
