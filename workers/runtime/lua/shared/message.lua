-- What scripts read in a message, whose text may be anything. They start with it.

local TEXT = '^%s*:%s*"([^"\\%c]*)"'
local QUOTED_TEXT, PLAIN_ASCII = '^%s*:%s*(".-[^\\]")', '^"([^"\\%c\128-\255]*)"$'
local MAX_TEXT_BYTES = 4096 -- a longer tenant or task id is an error and counts as none

-- Of the tasks whose messages are leased, and of those that are cancelled. They are not in KEYS,
-- because only the messages tell which tasks there are; primarch_fleet/cancellation.py has them too.
local LEASED_TASKS, CANCELLED = 'fleet:leased_tasks', 'fleet:cancelled:'

-- The text that `pattern` finds after a name in a message, which may be any text; nil without one.
-- The name is found wherever it stands in JSON, from the byte `start` on: inside a string its last
-- quote would be escaped, or no colon would follow.
local function text_after(name, message, pattern, start)
  local last = start - 1
  repeat
    last = select(2, string.find(message, name, last + 1, true))
    local text = last and string.match(message, pattern, last + 1)
    if text and #text <= MAX_TEXT_BYTES then
      return text
    end
  until not last
end

-- The tenant of a message; '' without one.
local function tenant_of(message)
  return text_after('"fleet_tenant"', message, TEXT, 1) or ''
end

-- The id of a message's task, as its headers have it; '' without one in ASCII, as Celery writes it.
local function task_of(message)
  local start = string.find(message, '"headers"', 1, true)
  local quoted = start and text_after('"id"', message, QUOTED_TEXT, start) or '""'
  local plain = string.match(quoted, PLAIN_ASCII)
  if plain or string.find(quoted, '[\128-\255]') then
    return plain or ''
  end
  local is_json, texts = pcall(cjson.decode, '[' .. quoted .. ']')
  return is_json and texts[1] or ''
end

-- The member of LEASED_TASKS for the lease of a message.
local function leased_task(message, tag)
  return task_of(message) .. '\0' .. tag
end
