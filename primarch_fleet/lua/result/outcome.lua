-- How a task has ended, by its result as Celery stores it. Scripts that ask start with it.

local FINAL = { SUCCESS = true, FAILURE = true, REVOKED = true }

-- The state in an encoded result; nil if the text is none. Celery encodes the state first.
local function state_in(text)
  return string.match(text, '^{"status": "([^"]+)"')
end

-- The state of the result under a key, or nil; and the start of what is stored there, '' for nothing.
local function stored_state(key)
  local start = redis.call('GETRANGE', key, 0, 31)
  return state_in(start), start
end
