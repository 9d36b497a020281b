-- Add to a day's costs, once.
--
-- KEYS[1]  hash    '[tenant, lane, provider, model, figure]' -> integer: what that comes to so far
-- KEYS[2]  string  there as long as it is known that this was added
-- ARGV[1]  number  seconds for which the day is kept, from now
-- ARGV[2]  number  seconds for which it is known that this was added
-- ARGV[3...]       a field of KEYS[1] and what to add to it, and so on
--
-- Returns 1, or 0 when this was added before: then nothing has changed.

if not redis.call('SET', KEYS[2], 1, 'NX', 'EX', ARGV[2]) then
  return 0
end
for n = 3, #ARGV, 2 do
  redis.call('HINCRBY', KEYS[1], ARGV[n], ARGV[n + 1])
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
return 1
