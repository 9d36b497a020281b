-- Store and announce a task's result in one step, unless its success is stored already.
--
-- KEYS[1]  string  the result, as Celery keeps it
-- KEYS[2]  channel of the same name: who waits for the result listens to it
-- ARGV[1]  string  the result
-- ARGV[2]  number  seconds that it is kept; 0 for ever
--
-- Returns 1, or 0 when there is a success, or something that is no result in JSON: then nothing has
-- changed.

local BEGINS = '{"status": "' -- what Celery encodes has its state first
local stored = redis.call('GETRANGE', KEYS[1], 0, #BEGINS + 7)
if stored ~= '' and (string.sub(stored, 1, #BEGINS) ~= BEGINS or stored == BEGINS .. 'SUCCESS"') then
  return 0
end
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', KEYS[2], ARGV[1])
return 1
