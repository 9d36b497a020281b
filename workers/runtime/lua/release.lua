-- End a lease by putting its message, as given, back in its queue or on a list of dead letters.
--
-- KEYS[1]  hash    lease tag -> '[message, "", list it came from]'
-- KEYS[2]  zset    lease tag, by the server's time in seconds when the lease was last renewed
-- KEYS[3]  list    where the message goes
-- ARGV[1]  string  the lease tag
-- ARGV[2]  string  the message
-- ARGV[3]  'next'|'last'  of its tenant in the queue of KEYS[3], or of all in KEYS[3]
-- ARGV[4]  number  only if nobody has renewed the lease for so many seconds; 0 for any lease
--
-- Returns 1, or 0 when the lease is gone or was renewed: then nothing has changed.

local renewed = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not renewed or redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 0
end
if tonumber(ARGV[4]) > 0 and tonumber(renewed) > redis.call('TIME')[1] - ARGV[4] then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
if ARGV[3] == 'next' then
  put_back(KEYS[3], ARGV[2])
else
  redis.call('LPUSH', KEYS[3], ARGV[2])
end
return 1
