-- Functions by which a worker takes messages: which tenants may use its slots, and in which order.
-- The fetch scripts start with it. Follows queue.lua and headers.lua.
-- KEYS[1]    leases: hash, lease tag -> '[message, "", list it came from]'
-- KEYS[2]    renewals: zset, lease tag by the Unix seconds of its last renewal
-- ARGV[1]    free: number, free slots of the worker, the reserved ones included
-- ARGV[2]    reserved: number, of these, reserved for tenants that hold fewer than so many slots; 0
--              for none
-- ARGV[3]    held: JSON, {"tenant": slots that it holds, ...}; may be {} if none are reserved
-- ARGV[4]    tag count: number of the lease tags that follow
-- ARGV[5...] tags: string, one for each message to take, unique to this fetch; at most `free`
-- The arguments after the tags are the script's own. A script returns `done()`: {list, tenant,
-- message, task id, cancelled, list, ...}, where cancelled is '1' if the task must not start, else
-- ''; the first message is leased under the first tag, and so on. A last '1' says that messages stay
-- which the worker may not take now.

-- What one fetch sorts of a list at most: a few milliseconds of the server's time.
local MAX_SORTED, MAX_SORTED_BYTES = 500, 2 ^ 22

local free, reserved, held = tonumber(ARGV[1]), tonumber(ARGV[2]), cjson.decode(ARGV[3])
local tag_count, own_args = tonumber(ARGV[4]), 4 + ARGV[4]
local time = redis.call('TIME')
local reply, offered_lists = {}, {}
local REPLY_FIELDS = 5 -- of each message

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('HDEL', KEYS[1], '')

-- How many more messages the script may take.
local function wanted()
  return tag_count - #reply / REPLY_FIELDS
end

local function add_to_reply(list, tenant, message, task)
  local cancelled = task ~= '' and redis.call('EXISTS', CANCELLED .. task) == 1
  for _, field in ipairs({ list, tenant, message, task, cancelled and '1' or '' }) do
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

-- Sort the messages that producers have pushed to a list: each goes after its tenant's others, and
-- a tenant that had none gets the last turn. The server moves a message without copying it here.
local function sort(list)
  local turns, count, bytes, sources = turns_of(list), 0, 0, {}
  local is_most_urgent = not string.find(list, SEPARATOR, 1, true)
  local message = redis.call('LINDEX', list, -1)
  while message and count < MAX_SORTED and bytes < MAX_SORTED_BYTES do
    local tenant = tenant_of(message)
    local target = sources[tenant]
    local list_to_sort = is_most_urgent and list_by_priority(list, message) or list
    if list_to_sort ~= list then
      target = list_to_sort -- as if it had been pushed there
    elseif not target then
      target = tenants_list(list, tenant)
      sources[tenant] = target
      if redis.call('EXISTS', target) == 0 then
        redis.call('RPUSH', turns, tenant)
      end
    end
    redis.call('LMOVE', list, target, 'RIGHT', 'LEFT')
    count, bytes = count + 1, bytes + #message
    message = redis.call('LINDEX', list, -1)
  end
end

-- Lease a message to the worker.
local function lease(list, tenant, message)
  local tag, task = ARGV[5 + #reply / REPLY_FIELDS], task_of(message)
  -- The text of the message does not change: cjson would alter numbers and empty arrays.
  redis.call('HSET', KEYS[1], tag, '[' .. message .. ',"",' .. cjson.encode(list) .. ']')
  redis.call('ZADD', KEYS[2], time[1], tag)
  redis.call('ZADD', LEASED_TASKS, 0, task .. '\0' .. tag)
  free, held[tenant] = free - 1, (held[tenant] or 0) + 1
  add_to_reply(list, tenant, message, task)
end

-- Take a message off its tenant's list, lease it, and give the tenant the last turn. `skipped` is
-- the number of the tenant's messages before it that were passed over; nil if not known.
local function take(list, tenant, message, skipped)
  local turns, source = turns_of(list), tenants_list(list, tenant)
  if skipped == 0 then
    redis.call('RPOP', source)
  else
    redis.call('LREM', source, -1, message)
  end
  redis.call('LREM', turns, 1, tenant)
  if redis.call('EXISTS', source) == 1 then
    redis.call('RPUSH', turns, tenant)
  end
  lease(list, tenant, message)
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
    return
  end
  sort(list)
  local last = wanted() + max_passed_over -- turns to read, and those of tenants that hold slots
  for _ in pairs(held) do
    last = last + 1
  end
  local ring, turn = redis.call('LRANGE', turns_of(list), 0, last), 1
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
end

local function done()
  for _, list in ipairs(offered_lists) do
    if redis.call('EXISTS', turns_of(list)) == 1 then
      reply[#reply + 1] = '1'
      break
    end
  end
  return reply
end
