-- Count the messages that wait in the lists of a queue, sorted by tenant or not. Follows turns.lua
-- and headers.lua.
-- KEYS[...]  lists: list, the lists of one queue that producers push to, that of its name first
-- ARGV[1]    header: string, a message's header with the Unix seconds of its submit, in quotes;
--            empty to read no message
-- ARGV[2]    max tenants: number, tenants of a list whose messages are searched for the oldest one
-- Returns for each list the number of waiting messages, and the Unix seconds of the oldest submit
-- among the next messages; '' if no message waits, or none has the header. The numbers add up to the
-- lengths of the lists: the first has a placeholder for each sorted message of the queue.

local function submitted_at(source, place)
  if ARGV[1] == '' then
    return math.huge
  end
  return number_in(redis.call('LINDEX', source, place) or '', ARGV[1]) or math.huge
end

local counts, oldest, total, all_sorted = {}, {}, 0, 0
for n, list in ipairs(KEYS) do
  local pushed, sorted = redis.call('LLEN', list), 0
  oldest[n] = n > 1 and submitted_at(list, -1) or math.huge
  for turn, tenant in ipairs(redis.call('LRANGE', turns_of(list), 0, -1)) do
    local source = tenants_list(list, tenant)
    sorted = sorted + redis.call('LLEN', source)
    if turn <= tonumber(ARGV[2]) then
      oldest[n] = math.min(oldest[n], submitted_at(source, -1))
    end
  end
  counts[n], total, all_sorted = pushed + sorted, total + pushed, all_sorted + sorted
end
oldest[1] = math.min(oldest[1], submitted_at(KEYS[1], -1 - all_sorted))

local reply, left = {}, total
for n = #KEYS, 1, -1 do
  -- Fewer than were sorted wait if a purge is not noticed yet.
  local count = n > 1 and math.min(counts[n], left) or left
  left = left - count
  reply[2 * n - 1] = count
  reply[2 * n] = oldest[n] < math.huge and string.format('%.6f', oldest[n]) or ''
end
return reply
