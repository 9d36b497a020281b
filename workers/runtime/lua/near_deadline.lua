-- Find the messages of a queue whose deadline is near. Follows turns.lua and headers.lua.
-- KEYS[...]  lists: list, the lists that producers push to
-- ARGV[1]    header: string, a message's header with the Unix seconds of its deadline, in quotes
-- ARGV[2]    until: Unix seconds, earlier deadlines are near
-- ARGV[3]    max read: number, the next messages to read of each tenant, and of those not sorted
--              yet
-- Returns {list, message, ...}: each message after its list, which is one of KEYS.

local found = {}

local function search(list, source)
  for _, message in ipairs(redis.call('LRANGE', source, -ARGV[3], -1)) do
    local deadline = number_in(message, ARGV[1])
    if deadline and deadline <= tonumber(ARGV[2]) then
      found[#found + 1] = list
      found[#found + 1] = message
    end
  end
end

for _, list in ipairs(KEYS) do
  search(list, list)
  for _, tenant in ipairs(redis.call('LRANGE', turns_of(list), 0, -1)) do
    search(list, tenants_list(list, tenant))
  end
end
return found
