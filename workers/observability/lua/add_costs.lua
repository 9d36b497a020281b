-- Add to the costs of a day, once.
-- KEYS[1]  costs: hash, '["tenant", "lane", "provider", "model", "figure"]' -> integer total
-- KEYS[2]  addition: string, exists while this addition is known to be made
-- ARGV[1]  day TTL: seconds to keep KEYS[1], from now
-- ARGV[2]  addition TTL: seconds to keep KEYS[2]
-- ARGV[...]  pairs: a field of KEYS[1] and the integer to add to it, from 3 on
-- Returns 1 if it added, 0 if this addition was made before: then nothing changes.

if not redis.call('SET', KEYS[2], 1, 'NX', 'EX', ARGV[2]) then
  return 0
end
for n = 3, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[n], ARGV[n + 1])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
