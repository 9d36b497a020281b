-- Functions by which a worker takes messages: which tenants may use its slots, and in which order.
-- The fetch scripts start with it. Follows queue.lua, headers.lua and deadline.lua.
-- KEYS[1]    leases: hash, lease tag -> '[message, "", list it came from]'
-- KEYS[2]    renewals: zset, lease tag by the Unix seconds of its last renewal
-- ARGV[1]    free: number, free slots of the worker, the reserved ones included
-- ARGV[2]    reserved: number, of these, reserved for tenants that hold fewer than so many slots; 0
--              for none
-- ARGV[3]    held: JSON, {"tenant": slots that it holds, ...}; may be {} if none are reserved
-- ARGV[4]    tag count: number of messages to take at most, each with a lease tag; at most `free`
-- ARGV[5]    tag start: string, with which all lease tags of this fetch begin
-- ARGV[6]    tag ends: string, the rest of each lease tag, with ',' between them
-- The arguments after these are the script's own. A script returns `done()`: {list, tenant,
-- message, task id, cancelled, reserved, list, ...}. cancelled is '1' if the task must not start, else
-- ''. reserved is what the task has in its tenant's budget, '<nano-dollars> <day> <tenant>', or '' if it
-- has nothing or not for another day. The first message is leased under the first tag, and so on. After
-- the messages follow '1' if messages stay which the worker may not take now, and the JSON ["queue",
-- ...] of the paused queues that have messages; each only if it says something.

-- What one fetch sorts of a list at most: a few milliseconds of the server's time.
local MAX_SORTED, MAX_SORTED_BYTES = 500, 2 ^ 22
local sorted_count = 0 -- by this script
-- What one fetch reads of a list of a paused queue at most, and messages that it reads at once.
local MAX_PAUSED, MAX_PAUSED_BYTES, PAUSED_PART = 100, 2 ^ 20, 10
local CANCELLED_TTL_SECONDS = 90 * 86400 -- as that of primarch_fleet/cancellation.py
-- Reservations: budget/ledger.lua. A task may run on a reservation that lasts so many seconds.
local PAYER, RESERVATIONS = 'fleet:budget:payer:', 'fleet:budget:open_nanousd:'
local MIN_RESERVED_SECONDS = 86400

local free, reserved, held = tonumber(ARGV[1]), tonumber(ARGV[2]), cjson.decode(ARGV[3])
local tag_count, own_args = tonumber(ARGV[4]), 6
local tags = {}
for tag_end in string.gmatch(ARGV[6] .. ',', '([^,]*),') do
  tags[#tags + 1] = ARGV[5] .. tag_end
end
local time = redis.call('TIME')
local reply, offered_lists = {}, {}
local paused = {} -- set: the paused queues that have messages
local REPLY_FIELDS = 6 -- of each message

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('HDEL', KEYS[1], '')

-- How many more messages the script may take.
local function wanted()
  return tag_count - #reply / REPLY_FIELDS
end

local function reserved_for(task)
  local payer = task ~= '' and redis.call('GET', PAYER .. task)
  local reservation = payer and redis.call('HGET', RESERVATIONS .. payer, task)
  if reservation and redis.call('TTL', PAYER .. task) > MIN_RESERVED_SECONDS then
    return reservation .. ' ' .. payer
  end
  return ''
end

local function add_to_reply(list, tenant, message, task)
  local cancelled = task ~= '' and redis.call('EXISTS', CANCELLED .. task) == 1
  local fields = { list, tenant, message, task, cancelled and '1' or '', reserved_for(task) }
  for _, field in ipairs(fields) do
    reply[#reply + 1] = field
  end
end

local function may_use_a_slot(tenant)
  return free > reserved or (held[tenant] or 0) < reserved
end

local is_key = {}
for _, key in ipairs(KEYS) do
  is_key[key] = true
end

-- The list where a message of a queue's most urgent list belongs, by its priority. Without one it is
-- a normal one. kombu writes 0 then, which means high only with the header of the fleet's client. A
-- message stays where it is if this worker does not take messages from the other list.
local function list_by_priority(list, message)
  local priority = number_in(message, '"priority"') or 0
  if priority == 0 and not number_in(message, '"fleet_submitted_at"') then
    priority = NORMAL
  end
  for _, step in ipairs(STEPS) do
    local target = list .. SEPARATOR .. step
    if priority >= step and is_key[target] then
      return target
    end
  end
  return list
end

-- Return a function that finds the tenant's list where a message goes, after the tenant's others; a
-- tenant that had none gets the last turn.
local function places()
  local known = {}
  return function(list, message)
    local tenant = tenant_of(message)
    local place = tenants_list(list, tenant)
    if not known[place] then
      known[place] = true
      if redis.call('EXISTS', place) == 0 then
        redis.call('RPUSH', turns_of(list), tenant)
      end
    end
    return place
  end
end

-- Sort the messages at the right end of a list that has no placeholders. The server moves a message
-- without copying it here. `list_of(message)` is the list of its priority.
local function sort_right_end(list, list_of)
  local state, place_of, count, bytes = state_of(queue_of(list)), places(), 0, 0
  local message = redis.call('LINDEX', list, -1)
  while message and count < MAX_SORTED and bytes < MAX_SORTED_BYTES do
    redis.call('LMOVE', list, place_of(list_of(message), message), 'RIGHT', 'LEFT')
    state.sorted = state.sorted + 1
    count, bytes = count + 1, bytes + #message
    message = redis.call('LINDEX', list, -1)
  end
  sorted_count = sorted_count + count
end

-- An empty list of a queue, the least urgent one. More messages than one fetch sorts move there from
-- the queue's first list, where placeholders are behind them.
local function empty_list_of(queue)
  for _, step in ipairs(STEPS) do
    local list = queue .. SEPARATOR .. step
    if is_key[list] and redis.call('EXISTS', list) == 0 then
      return list
    end
  end
end

-- Move the first `count` of the messages that are not sorted yet from a queue's first list to an
-- empty one, and drop the other ones, which are sorted.
local function spill(queue, target, unsorted, count)
  local state = state_of(queue)
  if state.placeholders < unsorted then -- whichever copies less
    redis.call('RENAME', queue, target)
    state.placeholders = 0
    settle(queue)
  else
    redis.call('COPY', queue, target)
    redis.call('LTRIM', queue, unsorted, -1)
  end
  redis.call('LTRIM', target, 0, count - 1)
  state.spilled = target
end

-- Sort the messages at the left of a queue's first list, oldest first: all, or as many as a fetch
-- may sort, and the others spill.
local function sort_left_end(queue)
  local state, place_of, count, bytes = state_of(queue), places(), 0, 0
  local unsorted = redis.call('LLEN', queue) - state.placeholders
  local max, max_bytes = MAX_SORTED, MAX_SORTED_BYTES
  local target = unsorted > 1 and empty_list_of(queue)
  if not target then -- none can be left unsorted
    max, max_bytes = unsorted, math.huge
  end
  while count < math.min(unsorted, max) and bytes < max_bytes do
    local size = math.min(math.max(count, 1), MAX_SORTED, unsorted - count, max - count)
    local first = unsorted - count - size
    local messages = redis.call('LRANGE', queue, first, first + size - 1)
    for n = size, 1, -1 do
      local message = messages[n]
      bytes = bytes + #message
      if message ~= PLACEHOLDER then
        local list = list_by_priority(queue, message)
        if list ~= queue and redis.call('EXISTS', list) == 1 then
          redis.call('LPUSH', list, message) -- after older ones, as if it had been pushed there
        else
          redis.call('LPUSH', place_of(list, message), message)
          state.sorted = state.sorted + 1
        end
      end
    end
    count = count + size
  end
  sorted_count = sorted_count + count
  if count < unsorted then
    spill(queue, target, unsorted, unsorted - count)
  elseif count > 0 then
    redis.call('LTRIM', queue, unsorted, -1)
  end
end

-- Sort the messages that producers have pushed to a list into lists of their tenants.
local function sort(list)
  local queue = queue_of(list)
  local state = state_of(queue)
  if state.spilled and (list == queue or list == state.spilled) then
    sort_right_end(state.spilled, function(message)
      return list_by_priority(queue, message)
    end)
    if redis.call('EXISTS', state.spilled) == 0 then
      state.spilled = nil
    end
  elseif list ~= queue then
    sort_right_end(list, function()
      return list
    end)
  end
  if list == queue and not state.spilled then -- else messages would overtake older ones
    sort_left_end(queue)
  end
end

-- Lease a message to the worker.
local function lease(list, tenant, message)
  local tag, task = tags[1 + #reply / REPLY_FIELDS], task_of(message)
  -- The text of the message does not change: cjson would alter numbers and empty arrays.
  redis.call('HSET', KEYS[1], tag, '[' .. message .. ',"",' .. cjson.encode(list) .. ']')
  redis.call('ZADD', KEYS[2], time[1], tag)
  redis.call('ZADD', LEASED_TASKS, 0, task .. '\0' .. tag)
  free, held[tenant] = free - 1, (held[tenant] or 0) + 1
  add_to_reply(list, tenant, message, task)
end

-- Lease purged messages as cancelled ones, so that their tasks end as revoked ones.
local function take_purged(queue)
  local index = purged_of(queue)
  local name = wanted() > 0 and redis.call('LINDEX', index, -1)
  while name do
    local message = redis.call('LINDEX', name, -1)
    if message then
      local task = task_of(message)
      if task ~= '' then -- if the worker gives the message back, it is dropped again
        redis.call('SET', CANCELLED .. task, 'waiting', 'EX', CANCELLED_TTL_SECONDS, 'NX')
        lease(string.match(name, '^(.*)' .. purged_of('')), tenant_of(message), message)
      end
      redis.call('LTRIM', name, 0, -2)
    else
      redis.call('LTRIM', index, 0, -2)
    end
    name = wanted() > 0 and redis.call('LINDEX', index, -1)
  end
end

-- Take a message off its tenant's list, lease it, and give the tenant the last turn. `skipped` is
-- the number of the tenant's messages before it that were passed over; nil if not known.
local function take(list, tenant, message, skipped)
  local turns, source = turns_of(list), tenants_list(list, tenant)
  if skipped == 0 then
    redis.call('LTRIM', source, 0, -2) -- RPOP would count as another consumer's: placeholders.lua
  else
    redis.call('LREM', source, -1, message)
  end
  local state = state_of(queue_of(list))
  state.sorted = state.sorted - 1
  redis.call('LREM', turns, 1, tenant)
  if redis.call('EXISTS', source) == 1 then
    redis.call('RPUSH', turns, tenant)
  end
  lease(list, tenant, message)
end

-- Take messages of a paused list whose deadline has passed: their tasks only end. Where a tenant has
-- many, the time chooses those that a fetch reads.
local function take_overdue(list)
  local ring = redis.call('LRANGE', turns_of(list), 0, -1)
  local left, bytes = MAX_PAUSED, 0
  for n = 1, #ring do
    local tenant = ring[(n + time[2]) % #ring + 1]
    local source = tenants_list(list, tenant)
    local parts = math.ceil(redis.call('LLEN', source) / PAUSED_PART)
    for part = 1, parts do
      local first = (part + time[2]) % parts * PAUSED_PART
      for _, message in ipairs(redis.call('LRANGE', source, first, first + PAUSED_PART - 1)) do
        left, bytes = left - 1, bytes + #message
        if wanted() > 0 and is_overdue(message, tonumber(time[1])) then
          take(list, tenant, message)
        end
      end
      if left <= 0 or bytes > MAX_PAUSED_BYTES then
        return
      end
    end
  end
end

-- The task of a message; nil if it names none.
local function task_of(message)
  local _, last = string.find(message, '"task"', 1, true)
  return last and string.match(message, '^%s*:%s*"([^"]*)"', last + 1)
end

-- Return a function for `offer_in_turn` that passes over the messages of tasks whose rate limit has no
-- room, and gives the others to `offer`. `allowances` is JSON, {"task": messages to take, ...}; nil for
-- no limits.
local function within_rates(allowances, offer)
  local left = cjson.decode(allowances or '{}')
  if not next(left) then
    return offer
  end
  return function(list, tenant, message, skipped)
    local task, before = task_of(message), #reply
    if task and left[task] == 0 then
      return true
    end
    local pass_over = offer(list, tenant, message, skipped)
    if task and left[task] and #reply > before then
      left[task] = left[task] - 1
    end
    return pass_over
  end
end

-- Offer a list's messages, one of each tenant in turn, and pass over at most `max_passed_over`.
-- `offer(list, tenant, message, skipped)` takes the message, or returns true to pass over it; the
-- tenant's next message is then offered in its next turn.
local function offer_in_turn(list, max_passed_over, offer)
  if wanted() == 0 then
    if sorted_count < MAX_SORTED then -- for the length of the list with the queue's name
      sort(list)
    end
    return
  end
  sort(list)
  if list == queue_of(list) then
    take_purged(list)
  end
  local last = wanted() + max_passed_over -- turns to read, and those of tenants that hold slots
  for _ in pairs(held) do
    last = last + 1
  end
  local ring, turn = redis.call('LRANGE', turns_of(list), 0, last), 1
  if ring[1] and is_paused(queue_of(list)) then
    paused[queue_of(list)] = true
    take_overdue(list)
    ring = {}
  end
  local passed_over, skipped_by_tenant = 0, {}
  while wanted() > 0 and passed_over < max_passed_over and ring[turn] do
    local tenant = ring[turn]
    local skipped = skipped_by_tenant[tenant] or 0
    local message = may_use_a_slot(tenant)
      and redis.call('LINDEX', tenants_list(list, tenant), -1 - skipped)
    if message then
      if offer(list, tenant, message, skipped) then
        passed_over, skipped_by_tenant[tenant] = passed_over + 1, skipped + 1
      end
      ring[#ring + 1] = tenant
    end
    turn = turn + 1
  end
  if ring[1] then
    offered_lists[#offered_lists + 1] = list
  end
  settle(queue_of(list))
end

local function done()
  for queue in pairs(states) do
    settle(queue)
  end
  for _, list in ipairs(offered_lists) do
    if redis.call('EXISTS', turns_of(list)) == 1 then
      reply[#reply + 1] = '1'
      break
    end
  end
  local names = {}
  for queue in pairs(paused) do
    names[#names + 1] = queue
  end
  if names[1] then
    reply[#reply + 1] = cjson.encode(names)
  end
  return reply
end
