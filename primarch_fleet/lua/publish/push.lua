-- Push messages to the lists of queues: all of them, or none. Follows queue_lists.lua.
-- KEYS[...]  lists: list, for each message the list of its queue
-- ARGV[1]    max share: fraction of the server's memory above which nothing is pushed; empty for no
--              check
-- ARGV[...]  messages: string, the messages, from 2 on
-- Returns nil, or the percentage of its memory that the server uses; nothing has changed then.

local percent = memory_percent_above(ARGV[1])
if percent then
  return percent
end
push(#KEYS)
