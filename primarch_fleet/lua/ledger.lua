-- What the scripts of a tenant's ledger begin with. Money is in micro-dollars, and every figure
-- below 2^53, which Lua's numbers hold exactly. Days and months are UTC's.
--
-- KEYS[1] ledger  hash  "<period> spent" and "<period> reserved", a period being 2026-11-25 or
--                       2026-11 -> micro-dollars
-- KEYS[2] open    hash  task id -> "amount day" of its reservation
-- KEYS[3] ages    zset  task id by when it was last reserved
-- KEYS[4] busy    zset  task id by when it was submitted: those that count for max_concurrency
-- KEYS[5] rate    hash  "minute", which one it is, and "tokens", how many were submitted in it
-- ARGV[1] now     Unix seconds; empty for the server's own clock

local function clock(given)
  return tonumber(given) or tonumber(redis.call('TIME')[1])
end

-- 2026-11-25 of Unix seconds: https://howardhinnant.github.io/date_algorithms.html#civil_from_days
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

-- The periods that a day counts in, the longer one first.
local function periods(day)
  return { day:sub(1, 7), day }
end

local function add(day, what, amount)
  for _, period in ipairs(periods(day)) do
    redis.call('HINCRBY', KEYS[1], period .. ' ' .. what, ('%.0f'):format(amount))
  end
end

-- The amount and the day of what KEYS[2] has of a task; 0 and nil of nothing.
local function parsed(reservation)
  local amount, day = (reservation or ''):match('^(%d+) (.+)$')
  return tonumber(amount) or 0, day
end

-- Give a task's reservation back; its day, nil without one.
local function release(id)
  local amount, day = parsed(redis.call('HGET', KEYS[2], id))
  if day then
    redis.call('HDEL', KEYS[2], id)
    redis.call('ZREM', KEYS[3], id)
    redis.call('ZREM', KEYS[4], id)
    add(day, 'reserved', 0 - amount) -- of nothing, -amount would be "-0", which is no integer
  end
  return day
end
