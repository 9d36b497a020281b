-- The ledger of one tenant: keys and functions that the scripts of lua/budget share.
-- Amounts are whole nano-dollars. Lua's numbers hold integers exactly up to 2^53, about 9 million
-- dollars: enough for a request, but not for a sum. Redis adds sums up, exact up to 2^63. Days and
-- months are UTC.
--
-- KEYS[1]  ledger: hash, "<period> spent" and "<period> reserved" -> nano-dollars; a period is a
--            day (2026-11-25) or a month (2026-11)
-- KEYS[2]  reservations: hash, task id -> "<amount> <day>"
-- KEYS[3]  reserved at: zset, task id by the Unix seconds of its last reservation
-- KEYS[4]  concurrent: zset, task id by the Unix seconds of its submit; the tasks that count for
--            max_concurrency
-- KEYS[5]  rate: hash, "minute", its number since 1970, and "tokens" submitted in it
-- ARGV[1]  now: Unix seconds; empty for the clock of the server
--
-- Beside them, a string for each reservation names its tenant, for those who know only the task.

local PAYER = 'fleet:budget:payer:'
-- The keys of the ledger. A script that does not know the tenant replaces them.
local LEDGER = KEYS

local function clock(given)
  return tonumber(given) or tonumber(redis.call('TIME')[1])
end

-- Format Unix seconds as 2026-11-25:
-- https://howardhinnant.github.io/date_algorithms.html#civil_from_days
local function date(seconds)
  local floor = math.floor
  local days = floor(seconds / 86400) + 719468
  local era = floor(days / 146097)
  local of_era = days - era * 146097
  local leaps = floor(of_era / 1460) - floor(of_era / 36524) + floor(of_era / 146096)
  local year = floor((of_era - leaps) / 365)
  local of_year = of_era - (365 * year + floor(year / 4) - floor(year / 100))
  local from_march = floor((5 * of_year + 2) / 153)
  local day = of_year - floor((153 * from_march + 2) / 5) + 1
  local month = from_march < 10 and from_march + 3 or from_march - 9
  return ('%04d-%02d-%02d'):format(year + era * 400 + (month <= 2 and 1 or 0), month, day)
end

-- The month and the day that an amount counts in.
local function periods(day)
  return { day:sub(1, 7), day }
end

local function add(day, what, amount)
  for _, period in ipairs(periods(day)) do
    redis.call('HINCRBY', LEDGER[1], period .. ' ' .. what, ('%.0f'):format(amount))
  end
end

-- Split a value of KEYS[2] into amount and day; 0 and nil without a reservation.
local function parse_reservation(value)
  local amount, day = (value or ''):match('^(%d+) (.+)$')
  return tonumber(amount) or 0, day
end

-- Remove a task's reservation. Returns its day; nil without one.
local function release(id)
  local amount, day = parse_reservation(redis.call('HGET', LEDGER[2], id))
  if day then
    redis.call('HDEL', LEDGER[2], id)
    redis.call('DEL', PAYER .. id)
    redis.call('ZREM', LEDGER[3], id)
    redis.call('ZREM', LEDGER[4], id)
    add(day, 'reserved', 0 - amount) -- unlike -amount, never "-0", which is not an integer
  end
  return day
end
