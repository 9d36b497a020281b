-- Find the messages of a queue whose deadline is near. Follows turns.lua and headers.lua.
-- KEYS[...]  lists: list, the lists of one queue that producers push to, that of its name first
-- ARGV[1]    header: string, a message's header with the Unix seconds of its deadline, in quotes
-- ARGV[2]    until: Unix seconds, earlier deadlines are near
-- ARGV[3]    max read: number, the next messages to read of each tenant, and of those not sorted
--              yet
-- Returns {list, message, ...}: each message after its list, which is one of KEYS.

local found = {}

-- `after`: of the messages at the right end, how many are passed over.
local function search(list, source, after)
  for _, message in ipairs(redis.call('LRANGE', source, -ARGV[3] - after, -1 - after)) do
    local deadline = number_in(message, ARGV[1])
    if deadline and deadline <= tonumber(ARGV[2]) then
      found[#found + 1] = list
      found[#found + 1] = message
    end
  end
end

local sorted = 0 -- and so many placeholders in the first list
for n, list in ipairs(KEYS) do
  if n > 1 then
    search(list, list, 0)
  end
  for _, tenant in ipairs(redis.call('LRANGE', turns_of(list), 0, -1)) do
    local source = tenants_list(list, tenant)
    sorted = sorted + redis.call('LLEN', source)
    search(list, source, 0)
  end
end
search(KEYS[1], KEYS[1], sorted)
return found
