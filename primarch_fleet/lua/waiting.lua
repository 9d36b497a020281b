-- Count what waits in lists of queues, sorted by tenant or not yet.
--
-- KEYS     lists     those that producers push to
-- ARGV[1]  string    a message's header with the Unix time of its submit, in quotes
-- ARGV[2]  number    tenants of a list at whose messages is looked for the oldest, at most
--
-- Returns for each list how many wait in it, and the Unix time at which the oldest of the next
-- messages was submitted; '' when nothing waits, or none says when.

local function submitted(source)
  local message = redis.call('LINDEX', source, -1) or ''
  local _, last = string.find(message, ARGV[1], 1, true)
  return last and tonumber(string.match(message, '^%s*:%s*([%d.]+)', last + 1)) or math.huge
end

local found = {}
for _, list in ipairs(KEYS) do
  local count, oldest = redis.call('LLEN', list), submitted(list)
  for turn, tenant in ipairs(redis.call('LRANGE', turns_of(list), 0, -1)) do
    local source = tenants_list(list, tenant)
    count = count + redis.call('LLEN', source)
    if turn <= tonumber(ARGV[2]) then
      oldest = math.min(oldest, submitted(source))
    end
  end
  found[#found + 1] = count
  found[#found + 1] = oldest < math.huge and string.format('%.6f', oldest) or ''
end
return found
