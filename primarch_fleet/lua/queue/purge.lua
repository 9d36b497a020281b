-- Drop the messages that wait in a queue, sorted by tenant or not. The queue's workers then store for
-- each that its task is revoked. Follows turns.lua and placeholders.lua.
-- KEYS[...]  lists: list, the lists of one queue that producers push to, that of its name first
-- Returns the number of messages.

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('HDEL', PLACEHOLDERS, '')

local queue = KEYS[1]
local state = state_of(queue)
settle(queue) -- of a queue that was purged before, or that an earlier version has sorted
local count = 0
for _, list in ipairs(KEYS) do
  count = count + redis.call('LLEN', list)
end
set_sorted_aside(queue)
state.sorted, state.spilled = 0, nil
settle(queue)
for _, list in ipairs(KEYS) do
  set_aside(list, list)
end
return count
