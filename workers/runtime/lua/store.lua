-- Store a task's state and publish it, unless an outcome is stored already. A task that fails keeps no
-- reservation, so that none is left if its worker dies before it settles. Follows budget/ledger.lua.
-- KEYS[1]  result: string, the result, as Celery stores it
-- KEYS[2]  channel: of the same name, where subscribers wait for the result
-- KEYS[3]  mark: string, exists while messages of the task are dropped
-- ARGV[1]  result: string, the encoded result
-- ARGV[2]  TTL: seconds for which it is stored; 0 for no limit
-- ARGV[3]  mark TTL: seconds for which the mark is still needed; empty if messages may still wait
-- ARGV[4]  task: string, the task's id
-- ARGV[...]  ledgers: string, the beginnings of the keys of a ledger, which the tenant's name ends;
--            only if the task fails
-- Returns 1; 0 if an outcome is stored, -1 if a value is stored that is not a result in JSON; nothing
-- has changed then.

-- zset: ids of tasks that were submitted and have no outcome yet
local OPEN = 'fleet:open'
local FINAL = { SUCCESS = true, FAILURE = true, REVOKED = true }

local tenant = ARGV[5] and redis.call('GET', PAYER .. ARGV[4])
if tenant then
  LEDGER = {}
  for i = 5, #ARGV do
    table.insert(LEDGER, ARGV[i] .. tenant)
  end
  release(ARGV[4])
end

local stored = redis.call('GETRANGE', KEYS[1], 0, 31)
local state = string.match(stored, '^{"status": "([^"]+)"') -- Celery encodes the state first
if stored ~= '' and not state then
  return -1
elseif FINAL[state] then
  return 0
end
-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('DEL', KEYS[1])
if tonumber(ARGV[2]) > 0 then
  redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
else
  redis.call('SET', KEYS[1], ARGV[1])
end
redis.call('PUBLISH', KEYS[2], ARGV[1])
if FINAL[string.match(ARGV[1], '^{"status": "([^"]+)"')] then
  redis.call('ZREM', OPEN, ARGV[4])
end
if ARGV[3] ~= '' then
  redis.call('EXPIRE', KEYS[3], ARGV[3])
end
return 1
