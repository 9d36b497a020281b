-- Reads headers of messages, whose text is JSON. Scripts on queues start with it.
-- A header is found wherever it stands in JSON: inside a string its last quote would be escaped, or
-- no colon would follow.

-- The number in a message's header, given as '"name"'; nil if the message does not have it.
local function number_in(message, header)
  local _, last = string.find(message, header, 1, true)
  return last and tonumber(string.match(message, '^%s*:%s*([%d.]+)', last + 1))
end
