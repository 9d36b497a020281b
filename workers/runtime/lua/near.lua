-- Find messages of a queue whose deadline is near.
--
-- KEYS     lists   that producers push to
-- ARGV[1]  string  a message's header with the Unix time of its deadline, in quotes
-- ARGV[2]  number  Unix time: a deadline until then is near
-- ARGV[3]  number  messages of a tenant, and of those not sorted yet, to look at: the next ones
--
-- Returns {list, message, ...}: each with the one of KEYS that it was pushed to.

local found = {}

local function look(list, source)
  for _, message in ipairs(redis.call('LRANGE', source, -ARGV[3], -1)) do
    local _, last = string.find(message, ARGV[1], 1, true)
    local deadline = last and tonumber(string.match(message, '^%s*:%s*([%d.]+)', last + 1))
    if deadline and deadline <= tonumber(ARGV[2]) then
      found[#found + 1] = list
      found[#found + 1] = message
    end
  end
end

for _, list in ipairs(KEYS) do
  look(list, list)
  for _, tenant in ipairs(redis.call('LRANGE', turns_of(list), 0, -1)) do
    look(list, tenants_list(list, tenant))
  end
end
return found
