-- Read the messages in a part of a list. Follows turns.lua.
-- KEYS[1]  messages: list, messages as JSON; producers push at the left
-- ARGV[1]  start: number, the place of the first message that is read
-- ARGV[2]  bytes: number, the part ends with the message that reaches it
-- Returns the messages of the part; none if the list has no more.

local STEP = 10 -- messages that are read together: each may have megabytes

local part, start, left = {}, tonumber(ARGV[1]), tonumber(ARGV[2])
while left > 0 do
  local messages = redis.call('LRANGE', KEYS[1], start, start + STEP - 1)
  for _, message in ipairs(messages) do
    if message == PLACEHOLDER or left <= 0 then
      return part -- only placeholders follow, or the part is full
    end
    part[#part + 1] = message
    left = left - #message
  end
  if #messages < STEP then
    return part
  end
  start = start + STEP
end
return part
