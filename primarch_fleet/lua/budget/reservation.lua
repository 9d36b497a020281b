-- Plan and commit the reservations of one tenant: for all tasks, or for none. Follows ledger.lua.
-- Each task gets the first of its two amounts that fits. A task that holds a reservation gets what
-- is missing to the amount, on the day of the reservation, and keeps an excess. A new task with
-- tokens counts for the tenant's concurrency and rate.
--
-- ARGV[2]  monthly budget: nano-dollars; empty for no limit
-- ARGV[3]  daily budget: nano-dollars; empty for no limit
-- ARGV[4]  reservation TTL: seconds
-- ARGV[5]  retention: days for which a period is kept, and an inactive tenant
-- ARGV[6]  max_concurrency: tasks; empty for no limit
-- ARGV[7]  tokens_per_minute: tokens; empty for no limit
-- ARGV[8]  concurrency TTL: seconds after which a task no longer counts
-- ARGV[9]  tenant: string, its id
-- ARGV[10] tasks: five arguments for each: id, amount, fallback amount (empty for none), tokens
--            with the amount, tokens with the fallback amount (empty: the task does not count)

local FIRST_TASK, TASK_ARGS = 10, 5
-- Bits of the grant of a task: primarch_fleet/budgets.py, GrantFlag.
local IS_FALLBACK, WAS_HELD = 1, 2
-- Expired reservations that one call removes: Redis does nothing else meanwhile.
local MAX_EXPIRED = 100
-- Arguments of one command; Lua's stack holds 8,000. An even number.
local MAX_ARGS = 5000
-- The largest integer below which Lua's numbers hold all integers. A call reserves no more.
local LARGEST = 2 ^ 53

local function remove_expired(now)
  local oldest = now - tonumber(ARGV[4])
  local ids = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', oldest, 'LIMIT', 0, MAX_EXPIRED)
  for _, id in ipairs(ids) do
    release(id)
  end
end

local function remove_old_periods(now)
  local first = date(now - tonumber(ARGV[5]) * 86400)
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if field < first then
      redis.call('HDEL', KEYS[1], field)
    end
  end
end

-- The reservation of every task of the call, by its id.
local function load_reservations(last, today)
  local ids, reservations = {}, {}
  for i = FIRST_TASK, last, TASK_ARGS do
    ids[#ids + 1] = ARGV[i]
  end
  for first = 1, #ids, MAX_ARGS do
    local until_id = math.min(first + MAX_ARGS - 1, #ids)
    local values = redis.call('HMGET', KEYS[2], unpack(ids, first, until_id))
    for i, value in ipairs(values) do
      local amount, day = parse_reservation(value)
      local held = { amount = amount, day = day or today, exists = day ~= nil }
      reservations[ids[first + i - 1]] = held
    end
  end
  return reservations
end

local available = {}

-- Split a sum into dollars and the nano-dollars above them, both exact.
local function split(sum)
  local sign, digits = sum:match('^(-?)(%d+)$')
  local factor = sign == '-' and -1 or 1
  return factor * (tonumber(digits:sub(1, -10)) or 0), factor * tonumber(digits:sub(-9))
end

-- What is left of a period below its cap: exact, but at most LARGEST; infinite without a cap.
local function left_in(period, cap)
  if cap ~= '' and not available[period] then
    local used = redis.call('HMGET', KEYS[1], period .. ' spent', period .. ' reserved')
    local dollars, nanos = split(cap)
    for _, sum in ipairs({ used[1] or '0', used[2] or '0' }) do
      local used_dollars, used_nanos = split(sum)
      dollars, nanos = dollars - used_dollars, nanos - used_nanos
    end
    available[period] = math.min(LARGEST, dollars * 1e9 + nanos)
  end
  return available[period] or math.huge
end

-- The budget that an amount exceeds, and what is left of it; nil if the amount fits.
local function exceeded(day, amount)
  local month, today = unpack(periods(day))
  local left = left_in(month, ARGV[2])
  if amount > left and amount > 0 then
    return 'monthly', left
  end
  left = left_in(today, ARGV[3])
  if amount > left and amount > 0 then
    return 'daily', left
  end
end

local function take(day, amount)
  for _, period in ipairs(periods(day)) do
    available[period] = available[period] and available[period] - amount
  end
end

-- The first amount of a task that fits, 1 or 2, and what is missing to it; nil if neither fits, with
-- what is missing, the budget that is exceeded and what is left of it. `i` is the task's index.
local function choose(held, i)
  local missing, budget, left = nil, nil, nil
  for option = 1, ARGV[i + 2] ~= '' and 2 or 1 do
    missing = math.max(0, tonumber(ARGV[i + option]) - held.amount)
    budget, left = exceeded(held.day, missing)
    if not budget then
      return option, missing
    end
  end
  return nil, missing, budget, left
end

-- Decide on all tasks without a write of theirs. `last` is the index of their last argument.
-- Returns the plan for commit(); or nil and the refusal, which is the reply of the script.
local function plan(last)
  local now = clock(ARGV[1])
  local today = date(now)
  remove_expired(now)
  if redis.call('HEXISTS', KEYS[1], today .. ' reserved') == 0 then
    remove_old_periods(now) -- on the first call of a day
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - tonumber(ARGV[8]))
  local minute = ('%.0f'):format(math.floor(now / 60))
  local rate = redis.call('HMGET', KEYS[5], 'minute', 'tokens')
  local tokens_used = rate[1] == minute and tonumber(rate[2]) or 0
  local slots_left = (tonumber(ARGV[6]) or math.huge) - redis.call('ZCARD', KEYS[4])
  local tokens_left = (tonumber(ARGV[7]) or math.huge) - tokens_used

  local planned = {
    now = now,
    minute = minute,
    reply = { 'granted', now },
    reservations = load_reservations(last, today),
    reserved = {}, -- by day
    concurrent = {},
    tokens = 0,
    tokens_used = tokens_used,
  }
  for i = FIRST_TASK, last, TASK_ARGS do
    local held = planned.reservations[ARGV[i]]
    local choice, missing, budget, left = choose(held, i)
    if not choice then
      return nil, { 'refused', now, budget, left, missing }
    end
    local tokens = not held.exists and tonumber(ARGV[i + 2 + choice])
    if tokens then
      if slots_left < 1 then
        return nil, { 'refused', now, 'concurrency', slots_left, 1 }
      elseif tokens > tokens_left then
        return nil, { 'refused', now, 'rate', tokens_left, tokens }
      end
      slots_left, tokens_left = slots_left - 1, tokens_left - tokens
      planned.tokens = planned.tokens + tokens
      table.insert(planned.concurrent, now)
      table.insert(planned.concurrent, ARGV[i])
    end
    take(held.day, missing)
    held.amount = held.amount + missing
    planned.reserved[held.day] = (planned.reserved[held.day] or 0) + missing
    local grant = (choice == 2 and IS_FALLBACK or 0) + (held.exists and WAS_HELD or 0)
    table.insert(planned.reply, grant)
  end
  return planned
end

local function write(command, key, args)
  for first = 1, #args, MAX_ARGS do
    redis.call(command, key, unpack(args, first, math.min(first + MAX_ARGS - 1, #args)))
  end
end

-- Store a plan. Returns the reply of the script.
local function commit(planned)
  local values, times = {}, {}
  for id, held in pairs(planned.reservations) do
    values[#values + 1], values[#values + 2] = id, ('%.0f %s'):format(held.amount, held.day)
    times[#times + 1], times[#times + 2] = planned.now, id
    redis.call('SET', PAYER .. id, ARGV[9], 'EX', ARGV[4])
  end
  write('HSET', KEYS[2], values)
  write('ZADD', KEYS[3], times)
  write('ZADD', KEYS[4], planned.concurrent)
  if planned.tokens > 0 then
    local tokens = ('%.0f'):format(planned.tokens_used + planned.tokens)
    redis.call('HSET', KEYS[5], 'minute', planned.minute, 'tokens', tokens)
  end
  for day, amount in pairs(planned.reserved) do
    add(day, 'reserved', amount)
  end
  for i = 1, 5 do
    redis.call('EXPIRE', KEYS[i], ARGV[5] * 86400)
  end
  return planned.reply
end
