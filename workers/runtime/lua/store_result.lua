-- Store a task's state and publish it, unless an outcome is stored already. A task that fails keeps no
-- reservation, so that none is left if its worker dies before it settles. Follows budget/ledger.lua and
-- result.lua.
-- KEYS[1]  result: string, the result, as Celery stores it
-- KEYS[2]  channel: of the same name, where subscribers wait for the result
-- KEYS[3]  mark: string, exists while messages of the task are dropped
-- ARGV[1]  result: string, the encoded result
-- ARGV[2]  TTL: seconds for which it is stored; 0 for no limit
-- ARGV[3]  mark TTL: seconds for which the mark is still needed; empty if messages may still wait
-- ARGV[4]  task: string, the task's id
-- ARGV[...]  ledgers: string, the beginnings of the keys of a ledger, which the tenant's name ends;
--            only if the task fails
-- Returns what `store_state` does.

local tenant = ARGV[5] and redis.call('GET', PAYER .. ARGV[4])
if tenant then
  LEDGER = {}
  for i = 5, #ARGV do
    table.insert(LEDGER, ARGV[i] .. tenant)
  end
  release(ARGV[4])
end

return store_state(ARGV[4], KEYS[1], ARGV[1], ARGV[2], KEYS[3], ARGV[3])
