-- Store a task's state and publish it, unless an outcome is stored already.
-- KEYS[1]  result: string, the result, as Celery stores it
-- KEYS[2]  channel: of the same name, where subscribers wait for the result
-- KEYS[3]  mark: string, exists while messages of the task are dropped
-- ARGV[1]  result: string, the encoded result
-- ARGV[2]  TTL: seconds for which it is stored; 0 for no limit
-- ARGV[3]  mark TTL: seconds for which the mark is still needed; empty if messages may still wait
-- Returns 1; 0 if an outcome is stored, -1 if a value is stored that is not a result in JSON; nothing
-- has changed then.

local FINAL = { SUCCESS = true, FAILURE = true, REVOKED = true }

local stored = redis.call('GETRANGE', KEYS[1], 0, 31)
local state = string.match(stored, '^{"status": "([^"]+)"') -- Celery encodes the state first
if stored ~= '' and not state then
  return -1
elseif FINAL[state] then
  return 0
end
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', KEYS[2], ARGV[1])
if ARGV[3] ~= '' then
  redis.call('EXPIRE', KEYS[3], ARGV[3])
end
return 1
