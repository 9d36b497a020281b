-- Add to the costs of a day, once.
-- KEYS[1]  costs: hash, '["tenant", "lane", "provider", "model", "figure"]' -> integer total
-- KEYS[2]  additions: set, the ids of the additions of one source that may be repeated
-- ARGV[1]  day TTL: seconds to keep KEYS[1], from now
-- ARGV[2]  additions TTL: seconds to keep KEYS[2], from now
-- ARGV[3]  addition: string, its id, unique to its source
-- ARGV[4]  finished: string, the id of an addition that is not repeated any more, or ''
-- ARGV[...]  pairs: a field of KEYS[1] and the integer to add to it, from 5 on
-- Returns 1 if it added, 0 if this addition was made before: then nothing changes.

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('SREM', KEYS[2], '')
if redis.call('SADD', KEYS[2], ARGV[3]) == 0 then
  return 0
end
redis.call('SREM', KEYS[2], ARGV[4])
redis.call('EXPIRE', KEYS[2], ARGV[2])
for n = 5, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[n], ARGV[n + 1])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
