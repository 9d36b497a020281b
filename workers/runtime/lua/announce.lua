-- Store a task's state and publish it, unless a state is stored already.
-- KEYS[1]  state: string, the state, as Celery stores it
-- KEYS[2]  channel: of the same name, where subscribers wait for the result
-- ARGV[1]  state: string, the encoded state
-- ARGV[2]  TTL: seconds for which it is stored; 0 for no limit
-- Returns nothing.

if redis.call('EXISTS', KEYS[1]) == 1 then
  return
end
-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('DEL', KEYS[1])
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', KEYS[2], ARGV[1])
