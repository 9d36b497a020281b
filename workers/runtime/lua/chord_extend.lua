-- Prolongs a worker's claim to publish a chord's body, or takes an expired claim again.
-- Celery's script takes a claim again also where parts are missing, because Redis has gone back.
-- KEYS[1] claim: string, the token of the worker that publishes the body
-- KEYS[2] size: string, parts of the chord
-- KEYS[3] results: zset or list, one member for each counted part
-- KEYS[4] added: string, parts that were added while the chord ran
-- ARGV[1] token: the worker's
-- ARGV[2] ttl: seconds
-- Returns 1 if the claim is the worker's, and all parts are counted.

local claim, size, counted = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2]), 0
local kind = redis.call('TYPE', KEYS[3])['ok']
if kind == 'zset' then
  counted = redis.call('ZCARD', KEYS[3])
elseif kind == 'list' then
  counted = redis.call('LLEN', KEYS[3])
end
if not size or counted ~= tonumber(size) + tonumber(redis.call('GET', KEYS[4]) or 0) then
  return 0
end
if claim and claim ~= ARGV[1] then
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
