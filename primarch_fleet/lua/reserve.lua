-- Reserve money for tasks of one tenant, for all of them or for none: for each the first of its two
-- amounts that fits. A task that holds a reservation gets what is missing to the amount, on the day
-- of the reservation, and keeps what it holds beyond it.
-- A task that is new and has tokens counts for the tenant's concurrency and rate.
-- Messages that are given are pushed once all is reserved.
-- Returns {now, one code a task}: 1 or 2, the amount that it was, and 2 more if the task held a
-- reservation before; or {now, 0, 1 for the month's cap, 2 for the day's, 3 for the concurrency or 4
-- for the rate, what is left below it, what was missing}, or {now, 0, 5, the percentage of its memory
-- that the server uses, 0}: then nothing was reserved, nor pushed.
--
-- KEYS    from 6 on: the lists to which messages are pushed, one for each message
-- ARGV[2] monthly cap, ARGV[3] daily cap  empty for none
-- ARGV[4] seconds after which a reservation is given back
-- ARGV[5] days for which a period is kept, and everything of a tenant who reserves no more
-- ARGV[6] max_concurrency, ARGV[7] tokens_per_minute  empty for none
-- ARGV[8] seconds after which a task no longer counts for the concurrency, whatever became of it
-- ARGV[9] share of the server's memory above which no message is pushed
-- ARGV    from 10 on, of each task: id, amount, the amount instead (empty for none), and the tokens
--         with which it counts for the concurrency and the rate, of the one and the other (or empty);
--         behind them the messages

-- Reservations that one call gives back for their age: Redis does nothing else meanwhile.
local SWEPT = 100
-- Arguments that a call takes at a time: Lua's stack holds 8,000. An even number.
local MANY = 5000
local MESSAGES = #KEYS - 5
local FIRST, LAST, EACH = 10, #ARGV - MESSAGES, 5 -- of the tasks' arguments

local now = clock(ARGV[1])
local today = date(now)
local caps = { tonumber(ARGV[2]), tonumber(ARGV[3]) }

local function sweep()
  local oldest = now - tonumber(ARGV[4])
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', oldest, 'LIMIT', 0, SWEPT)) do
    release(id)
  end
end

-- On the first call of a day.
local function forget()
  local first = date(now - tonumber(ARGV[5]) * 86400)
  for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
    if field < first then
      redis.call('HDEL', KEYS[1], field)
    end
  end
end

local rooms = {}

-- What is left of a period below its cap.
local function room(period, cap)
  if cap and not rooms[period] then
    local taken = redis.call('HMGET', KEYS[1], period .. ' spent', period .. ' reserved')
    rooms[period] = cap - (tonumber(taken[1]) or 0) - (tonumber(taken[2]) or 0)
  end
  return rooms[period] or math.huge
end

-- The number of the cap that leaves no room for an amount, and the room; nil if it fits.
local function refusal(day, amount)
  for i, period in ipairs(periods(day)) do
    local left = room(period, caps[i])
    if amount > left and amount > 0 then
      return i, left
    end
  end
end

local function take(day, amount)
  for _, period in ipairs(periods(day)) do
    rooms[period] = rooms[period] and rooms[period] - amount
  end
end

local percent = MESSAGES > 0 and too_full(tonumber(ARGV[9]))
if percent then
  return { now, 0, 5, percent, 0 }
end
sweep()
if redis.call('HEXISTS', KEYS[1], today .. ' reserved') == 0 then
  forget()
end

-- What every task of the call holds, by its id.
local function holdings()
  local ids, found = {}, {}
  for i = FIRST, LAST, EACH do
    ids[#ids + 1] = ARGV[i]
  end
  for first = 1, #ids, MANY do
    local last = math.min(first + MANY - 1, #ids)
    for i, reservation in ipairs(redis.call('HMGET', KEYS[2], unpack(ids, first, last))) do
      local amount, day = parsed(reservation)
      found[ids[first + i - 1]] = { amount = amount, day = day or today, before = day ~= nil }
    end
  end
  return found
end

local function write(command, key, pairs_of_it)
  for first = 1, #pairs_of_it, MANY do
    local last = math.min(first + MANY - 1, #pairs_of_it)
    redis.call(command, key, unpack(pairs_of_it, first, last))
  end
end

-- What is left of the tenant's concurrency and of this minute's tokens.
local minute = ('%.0f'):format(math.floor(now / 60))
local rate = redis.call('HMGET', KEYS[5], 'minute', 'tokens')
local tokens_before = rate[1] == minute and tonumber(rate[2]) or 0

local function rooms_of_load()
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now - tonumber(ARGV[8]))
  local concurrency = (tonumber(ARGV[6]) or math.huge) - redis.call('ZCARD', KEYS[4])
  return concurrency, (tonumber(ARGV[7]) or math.huge) - tokens_before
end

local held, answer, totals, open, ages = holdings(), { now }, {}, {}, {}
local places, tokens_left = rooms_of_load()
local busy, tokens_taken = {}, 0

for i = FIRST, LAST, EACH do
  local mine, chosen, cap, left, missing = held[ARGV[i]], nil, nil, nil, nil
  for option = 1, ARGV[i + 2] ~= '' and 2 or 1 do
    missing = math.max(0, tonumber(ARGV[i + option]) - mine.amount)
    cap, left = refusal(mine.day, missing)
    if not cap then
      chosen = option
      break
    end
  end
  if not chosen then
    return { now, 0, cap, left, missing }
  end
  local tokens = not mine.before and tonumber(ARGV[i + 2 + chosen])
  if tokens then
    if places < 1 then
      return { now, 0, 3, places, 1 }
    elseif tokens > tokens_left then
      return { now, 0, 4, tokens_left, tokens }
    end
    places, tokens_left, tokens_taken = places - 1, tokens_left - tokens, tokens_taken + tokens
    busy[#busy + 1], busy[#busy + 2] = now, ARGV[i]
  end
  take(mine.day, missing)
  mine.amount = mine.amount + missing
  totals[mine.day] = (totals[mine.day] or 0) + missing
  answer[#answer + 1] = chosen + (mine.before and 2 or 0)
end

-- First of all writes: if a list cannot take its message, nothing is reserved.
push(MESSAGES)
for id, mine in pairs(held) do
  open[#open + 1], open[#open + 2] = id, ('%.0f %s'):format(mine.amount, mine.day)
  ages[#ages + 1], ages[#ages + 2] = now, id
end
write('HSET', KEYS[2], open)
write('ZADD', KEYS[3], ages)
write('ZADD', KEYS[4], busy)
if tokens_taken > 0 then
  local tokens = ('%.0f'):format(tokens_before + tokens_taken)
  redis.call('HSET', KEYS[5], 'minute', minute, 'tokens', tokens)
end
for day, amount in pairs(totals) do
  add(day, 'reserved', amount)
end
for i = 1, 5 do
  redis.call('EXPIRE', KEYS[i], ARGV[5] * 86400)
end
return answer
