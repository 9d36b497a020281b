-- Drop the messages that wait in lists of queues, sorted by tenant or not. Follows turns.lua.
-- KEYS[...]  lists: list, the lists that producers push to
-- Returns the number of messages.

local count = 0

local function drop(list)
  count = count + redis.call('LLEN', list)
  redis.call('UNLINK', list)
end

for _, list in ipairs(KEYS) do
  drop(list)
  for _, tenant in ipairs(redis.call('LRANGE', turns_of(list), 0, -1)) do
    drop(tenants_list(list, tenant))
  end
  redis.call('UNLINK', turns_of(list))
end
return count
