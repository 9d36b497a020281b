-- Whether the deadline of a message has passed. The fetch scripts start with it. Follows message.lua.

-- Seconds after a deadline in which a worker, whose idea of the server's time is not exact, might
-- still start the task.
local DEADLINE_MARGIN_SECONDS = 1
local ISO_8601 = '^(%d+)-(%d+)-(%d+)T(%d+):(%d+):([%d.]+)(.*)$'

-- The number of a date, which counts the days since 1970-01-01:
-- https://howardhinnant.github.io/date_algorithms.html#days_from_civil
local function days(year, month, day)
  local floor = math.floor
  year = month <= 2 and year - 1 or year
  local era = floor(year / 400)
  local of_era = year - era * 400
  local of_year = floor((153 * (month + (month > 2 and -3 or 9)) + 2) / 5) + day - 1
  return era * 146097 + of_era * 365 + floor(of_era / 4) - floor(of_era / 100) + of_year - 719468
end

-- The Unix seconds of a time as Python writes it, which is in UTC without an offset; nil for others.
local function unix_seconds(text)
  local year, month, day, hour, minute, second, zone = string.match(text, ISO_8601)
  if not year then
    return nil
  end
  local sign, hours, minutes = string.match(zone, '^([+-])(%d%d):?(%d%d)$')
  local offset = hours and (hours * 3600 + minutes * 60) * (sign == '-' and -1 or 1) or 0
  local date = days(tonumber(year), tonumber(month), tonumber(day))
  return date * 86400 + hour * 3600 + minute * 60 + second - offset
end

-- `now`: Unix seconds.
local function is_overdue(message, now)
  local start = string.find(message, '"headers"', 1, true)
  local _, last = string.find(message, '"expires"', start or 1, true) -- before all headers of others
  local expires = start and last and string.match(message, TEXT, last + 1)
  local deadline = expires and unix_seconds(expires)
  return deadline ~= nil and deadline + DEADLINE_MARGIN_SECONDS < now
end
