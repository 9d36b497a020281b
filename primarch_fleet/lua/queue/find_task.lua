-- Find the message of a task in a part of a list. Follows turns.lua.
-- KEYS[1]  messages: list, messages as JSON; producers push at the left
-- ARGV[1]  task: string, its id as JSON has it, in quotes
-- ARGV[2]  start: number, the place of the first message that is read
-- ARGV[3]  count: number, how many are read
-- Returns the message if one of them is the task's, 0 if none is and the list has no more, -1 if it
-- has more.

-- Whether one of the values of "id" in a message is the task: that of the headers, or of a stamp.
local function is_of_task(message)
  local last = 1
  while last do
    last = select(2, string.find(message, '"id"', last, true))
    local value = last and string.match(message, '^%s*:%s*()', last + 1)
    if value and string.sub(message, value, value + #ARGV[1] - 1) == ARGV[1] then
      return true
    end
  end
  return false
end

local start, count = tonumber(ARGV[2]), tonumber(ARGV[3])
local messages = redis.call('LRANGE', KEYS[1], start, start + count - 1)
for _, message in ipairs(messages) do
  if message == PLACEHOLDER then
    return 0 -- only placeholders follow
  end
  if is_of_task(message) then
    return message
  end
end
return #messages == count and -1 or 0
