-- Notes on the mark of a cancelled task that its followers were told. A mark that has expired stays so.
-- KEYS[1] mark: string, exists while messages of the task are dropped
-- ARGV[1] note: string
-- ARGV[2] TTL: seconds for which the mark is still needed

-- A server out of memory allows this write, and then also those that follow it in the script.
if redis.call('DEL', KEYS[1]) == 1 then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
end
