-- Store a task's result and publish it, unless a success is stored already.
-- KEYS[1]  result: string, the result, as Celery stores it
-- KEYS[2]  channel: of the same name, where subscribers wait for the result
-- ARGV[1]  result: string, the encoded result
-- ARGV[2]  TTL: seconds for which it is stored; 0 for no limit
-- Returns 1, or 0 if a success is stored, or a value that is not a result in JSON; nothing has
-- changed then.

local PREFIX = '{"status": "' -- Celery encodes the state first
local stored = redis.call('GETRANGE', KEYS[1], 0, #PREFIX + 7)
if stored ~= '' and (string.sub(stored, 1, #PREFIX) ~= PREFIX or stored == PREFIX .. 'SUCCESS"') then
  return 0
end
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', KEYS[2], ARGV[1])
return 1
