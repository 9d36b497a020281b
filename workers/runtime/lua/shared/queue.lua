-- Functions that the scripts share which take messages off a queue or put them back.
-- Follows turns.lua, placeholders.lua and message.lua.

-- set: the queues from which workers take no messages; as in primarch_fleet/queues.py.
local PAUSED_QUEUES = 'fleet:paused_queues'

local function is_paused(queue)
  return redis.call('SISMEMBER', PAUSED_QUEUES, queue) == 1
end

-- Put a message before the tenant's others. A tenant that had none gets the next turn.
local function put_back(list, message)
  local queue, tenant = queue_of(list), tenant_of(message)
  local state = state_of(queue) -- first: a purge before this is none of the message
  if redis.call('RPUSH', tenants_list(list, tenant), message) == 1 then
    redis.call('LPUSH', turns_of(list), tenant)
  end
  state.sorted = state.sorted + 1
  settle(queue)
end
