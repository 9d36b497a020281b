-- Take the next message and lease it in one step, so that a worker killed at any point loses none.
--
-- KEYS[1]   hash    lease tag -> '[message, "", list it came from]'
-- KEYS[2]   zset    lease tag, by the server's time in seconds when the lease was last renewed
-- KEYS[3..] lists   the waiting messages, most urgent list first; the next one is at the right end
-- ARGV[1]   string  the lease tag, unique to this fetch
-- ARGV[2..] '1'|'0' for each list: lease what comes from it, or its consumer does not acknowledge
--
-- Returns {list, message}, or false when every list is empty.

for i = 3, #KEYS do
  local message = redis.call('RPOP', KEYS[i])
  if message then
    if ARGV[i - 1] == '1' then
      -- The text of the message is kept as it is: cjson would change numbers and empty arrays.
      local entry = '[' .. message .. ',"",' .. cjson.encode(KEYS[i]) .. ']'
      redis.call('HSET', KEYS[1], ARGV[1], entry)
      redis.call('ZADD', KEYS[2], redis.call('TIME')[1], ARGV[1])
    end
    return {KEYS[i], message}
  end
end
return false
