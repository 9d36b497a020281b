-- Keeps the lengths of kombu's lists true. Scripts that sort messages, take them or put them back
-- start with it. Follows turns.lua.
--
-- The list with the queue's name has one placeholder for each sorted message of the queue, of any
-- priority. Placeholders are at its right end; messages that are not sorted yet are at the left,
-- where producers push. So the lengths of the lists of all priorities add up to the waiting
-- messages, and a purge that deletes these lists deletes the placeholders of sorted messages, too.
--
-- Placeholders may also be missing because a consumer of another app has taken them, one by one.
-- No script of ours uses the commands by which consumers do that, and the server counts the calls
-- of each command. So missing placeholders were deleted if all are missing and the server has
-- counted fewer such calls than that. In any other case they are put back, and no message is lost.

-- hash: queue -> '<placeholders> <calls of TAKES> <run id of the server> <Unix seconds of these two>
-- <priority of the list that has older messages of the queue's first list; 0 for none>'
local PLACEHOLDERS = 'fleet:placeholders'
-- Commands that take single elements off lists.
local TAKES = { 'brpop', 'rpop', 'blpop', 'lpop', 'blmpop', 'lmpop', 'rpoplpush', 'brpoplpush', 'blmove' }
local MAX_PUSHED = 5000 -- arguments of one command; Lua's stack holds 8,000

local states = {} -- by queue, as state_of returns them

-- The queue of a list that producers push to.
local function queue_of(list)
  return string.match(list, '^(.-)' .. SEPARATOR) or list
end

-- The lists of a queue that producers push to.
local function lists_of(queue)
  local lists = { queue }
  for _, step in ipairs(STEPS) do
    lists[#lists + 1] = queue .. SEPARATOR .. step
  end
  return lists
end

-- The list that names the lists of purged messages of a queue, whose tasks are told by its workers.
local function purged_of(queue)
  return queue .. SEPARATOR .. 'purged'
end

-- Calls of TAKES since the server's start, and the id of that run; '' if they are not permitted.
local function count_takes()
  local stats, server = redis.pcall('INFO', 'commandstats'), redis.pcall('INFO', 'server')
  if type(stats) ~= 'string' or type(server) ~= 'string' then
    return 0, ''
  end
  local count = 0
  for _, command in ipairs(TAKES) do
    count = count + (string.match(stats, 'cmdstat_' .. command .. ':calls=(%d+)') or 0)
  end
  return count, string.match(server, 'run_id:(%x+)') or ''
end

-- The sorted messages of a queue.
local function count_sorted(queue)
  local count = 0
  for _, list in ipairs(lists_of(queue)) do
    for _, tenant in ipairs(redis.call('LRANGE', turns_of(list), 0, -1)) do
      count = count + redis.call('LLEN', tenants_list(list, tenant))
    end
  end
  return count
end

-- How many placeholders a queue has, at most `most`.
local function count_placeholders(queue, most)
  local fewest = 0
  local middle = most
  while fewest < most do
    if redis.call('LINDEX', queue, -middle) == PLACEHOLDER then
      fewest = middle
    else
      most = middle - 1
    end
    middle = math.ceil((fewest + most) / 2)
  end
  return fewest
end

-- Take a list of messages off a queue for good.
local function set_aside(list, source)
  if redis.call('EXISTS', source) == 1 then
    local time, index = redis.call('TIME'), purged_of(queue_of(list))
    local number = redis.call('LLEN', index)
    local name = purged_of(list) .. SEPARATOR .. time[1] .. time[2] .. '-' .. number
    redis.call('RENAME', source, name)
    redis.call('LPUSH', index, name)
  end
end

local function set_sorted_aside(queue)
  for _, list in ipairs(lists_of(queue)) do
    for _, tenant in ipairs(redis.call('LRANGE', turns_of(list), 0, -1)) do
      set_aside(list, tenants_list(list, tenant))
    end
    redis.call('DEL', turns_of(list))
  end
end

-- What is known of a queue: {sorted, its sorted messages; placeholders, those that it has; spilled,
-- the list that has older messages of its first list, if there is one}. The script changes `sorted`
-- and `spilled`, and calls `settle`. A purge is noticed here.
local function state_of(queue)
  if states[queue] then
    return states[queue]
  end
  local stored = redis.call('HGET', PLACEHOLDERS, queue) or ''
  local expected, takes, run, at, spilled = string.match(stored, '^(%d+) (%d+) (%x*) (%d+) (%d)$')
  local state = { stored = stored, at = 0 }
  if spilled and spilled ~= '0' then
    state.spilled = queue .. SEPARATOR .. spilled
  end
  states[queue] = state
  expected = tonumber(expected) or 0
  local turns = {}
  for _, list in ipairs(lists_of(queue)) do
    turns[#turns + 1] = turns_of(list)
  end
  if redis.call('EXISTS', unpack(turns)) == 0 then
    state.sorted = 0
  elseif expected == 0 then -- an earlier version has sorted them
    state.sorted = count_sorted(queue)
  else
    state.sorted = expected
  end
  state.placeholders = count_placeholders(queue, expected)
  if state.sorted == 0 or expected == 0 then
    return state
  end
  if state.placeholders == expected then
    state.takes, state.run, state.at = takes, run, tonumber(at)
  elseif state.placeholders == 0 then
    local takes_now, run_now = count_takes()
    local taken = takes_now - takes
    if run ~= '' and run == run_now and taken >= 0 and taken < expected then
      set_sorted_aside(queue)
      state.sorted = 0
    end
  end
  return state
end

-- Put back or remove placeholders, so that there is one for each sorted message.
local function settle(queue)
  local state = state_of(queue)
  local missing = state.sorted - state.placeholders
  if missing < 0 then
    redis.call('LTRIM', queue, 0, missing - 1)
  elseif missing > 0 then
    local texts = {}
    for n = 1, math.min(missing, MAX_PUSHED) do
      texts[n] = PLACEHOLDER
    end
    for pushed = 0, missing - 1, MAX_PUSHED do
      redis.call('RPUSH', queue, unpack(texts, 1, math.min(missing - pushed, MAX_PUSHED)))
    end
  end
  state.placeholders = state.sorted
  if state.sorted == 0 and not state.spilled then
    if state.stored ~= '' then
      redis.call('HDEL', PLACEHOLDERS, queue)
      state.stored = ''
    end
    return
  end
  local now = tonumber(redis.call('TIME')[1])
  if state.at ~= now then -- once a second is enough
    state.takes, state.run = count_takes()
    state.at = now
  end
  local spilled = state.spilled and string.sub(state.spilled, -1) or 0
  local stored = table.concat({ state.sorted, state.takes, state.run, state.at, spilled }, ' ')
  if stored ~= state.stored then
    redis.call('HSET', PLACEHOLDERS, queue, stored)
    state.stored = stored
  end
end
