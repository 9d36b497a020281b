-- Reserve money for tasks of one tenant and push messages: both, or neither.
-- Follows budget/ledger.lua, budget/reservation.lua and queue_lists.lua.
-- KEYS[1-5]  the ledger: ledger.lua
-- KEYS[...]  idempotency keys and lists: queue_lists.lua, from 6 on
-- ARGV[...]  the clock, the limits and the tasks: ledger.lua and reservation.lua
-- ARGV[...]  max share: fraction of the server's memory above which nothing is pushed; empty for no
--            check
-- ARGV[...]  messages and idempotency keys: queue_lists.lua
-- Returns the reply of reserve.lua, or {'redis_full', the percentage of its memory that the server
-- uses}, or {'repeated'} if a message was pushed before; nothing was reserved or pushed then.

local messages = #KEYS - 5 - once
local max_share = #ARGV - 3 - messages
local percent = memory_percent_above(ARGV[max_share])
if percent then
  return { 'redis_full', percent }
end
if pushed_before(5) then
  return { 'repeated' }
end
-- Writes nothing; a server out of memory refuses it, and so the whole script. The removals of plan()
-- would make it allow all later writes.
redis.call('ZADD', KEYS[3], 'XX', 0, '')
local planned, refusal = plan(max_share - 1)
if not planned then
  return refusal
end
push(5) -- first: if a list cannot take its message, nothing is reserved
return commit(planned)
