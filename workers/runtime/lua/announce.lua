-- Store the states of tasks and publish them, unless states are stored already.
-- KEYS[...] states: string, the state of each task, as Celery stores it; channels have the same names,
--           where subscribers wait for the results
-- ARGV[1]  TTL: seconds for which they are stored
-- ARGV[...] states: string, the encoded states
-- Returns nothing.

for i, key in ipairs(KEYS) do
  if redis.call('EXISTS', key) == 0 then
    -- A server out of memory allows this write, and then also those that follow it in the script.
    redis.call('DEL', key)
    redis.call('SET', key, ARGV[1 + i], 'EX', ARGV[1])
    redis.call('PUBLISH', key, ARGV[1 + i])
  end
end
