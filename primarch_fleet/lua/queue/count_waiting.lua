-- Count the messages that wait in lists of queues, sorted by tenant or not. Follows turns.lua and
-- headers.lua.
-- KEYS[...]  lists: list, the lists that producers push to
-- ARGV[1]    header: string, a message's header with the Unix seconds of its submit, in quotes;
--            empty to read no message
-- ARGV[2]    max tenants: number, tenants of a list whose messages are searched for the oldest one
-- Returns for each list the number of waiting messages, and the Unix seconds of the oldest submit
-- among the next messages; '' if no message waits, or none has the header.

local function submitted_at(source)
  if ARGV[1] == '' then
    return math.huge
  end
  return number_in(redis.call('LINDEX', source, -1) or '', ARGV[1]) or math.huge
end

local reply = {}
for _, list in ipairs(KEYS) do
  local count, oldest = redis.call('LLEN', list), submitted_at(list)
  for turn, tenant in ipairs(redis.call('LRANGE', turns_of(list), 0, -1)) do
    local source = tenants_list(list, tenant)
    count = count + redis.call('LLEN', source)
    if turn <= tonumber(ARGV[2]) then
      oldest = math.min(oldest, submitted_at(source))
    end
  end
  reply[#reply + 1] = count
  reply[#reply + 1] = oldest < math.huge and string.format('%.6f', oldest) or ''
end
return reply
