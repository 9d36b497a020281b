-- Move a waiting message to another queue, where it becomes the next message.
-- Follows queue.lua.
-- KEYS[1]  source: list, the list that the message was pushed to
-- KEYS[2]  target: list, the list of the other queue that producers push to
-- KEYS[3]  heartbeat: string, exists while a worker serves the other queue
-- KEYS[4]  mark: string, exists if the task is cancelled
-- ARGV[1]  message: string, the message as it waits
-- ARGV[2]  moved: string, the message for the other queue
-- Returns 1, or 0 if the message does not wait any more, its task is cancelled, or the other queue is
-- paused or has no worker; nothing has changed then.

local tenant = tenant_of(ARGV[1])
local sorted = tenants_list(KEYS[1], tenant)

if redis.call('EXISTS', KEYS[3]) == 0 or redis.call('EXISTS', KEYS[4]) == 1 then
  return 0
end
if is_paused(queue_of(KEYS[2])) then
  return 0
end
local queue = queue_of(KEYS[1])
local state = state_of(queue)
if redis.call('LREM', sorted, -1, ARGV[1]) == 1 then
  if redis.call('EXISTS', sorted) == 0 then
    redis.call('LREM', turns_of(KEYS[1]), 1, tenant)
  end
  state.sorted = state.sorted - 1
elseif redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then -- from the left: placeholders are at the right
  settle(queue)
  return 0
end
settle(queue)
put_back(KEYS[2], ARGV[2])
return 1
