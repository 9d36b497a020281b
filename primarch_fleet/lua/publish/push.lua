-- Push messages to the lists of queues: all of them, or none. Follows queue_lists.lua.
-- KEYS[...]  idempotency keys and lists: queue_lists.lua
-- ARGV[1]    max share: fraction of the server's memory above which nothing is pushed; empty for no
--            check
-- ARGV[...]  messages and idempotency keys: queue_lists.lua
-- Returns nil, or {'redis_full', the percentage of its memory that the server uses}, or
-- {'repeated'} if a message was pushed before; nothing has changed then.

local percent = memory_percent_above(ARGV[1])
if percent then
  return { 'redis_full', percent }
end
if pushed_before(0) then
  return { 'repeated' }
end
push(0)
