-- What the scripts begin with, behind queue.lua, by which a worker takes messages: who may have its
-- places, and in which order.
--
-- KEYS[1]  hash    lease tag -> '[message, "", list it came from]'
-- KEYS[2]  zset    lease tag, by the server's time in seconds when the lease was last renewed
-- ARGV[1]  number  places of the worker that are free
-- ARGV[2]  number  of these, how many are kept for tenants who hold less than so many; 0 for none
-- ARGV[3]  string  '{"tenant": places it holds, ...}'; needs nobody if none are kept
-- ARGV[4]  number  of the lease tags that follow, unique to this fetch: one for each message it may
--                  take, and never more than places are free
--
-- What stands behind the tags is the script's own. It returns `taken`: {list, tenant, message, list,
-- tenant, message, ...}, the first message under the first tag and so on.

-- What one fetch sorts of a list at most: a few milliseconds of the server's time.
local SORTED, SORTED_BYTES = 500, 2 ^ 22

local free, reserved, held = tonumber(ARGV[1]), tonumber(ARGV[2]), cjson.decode(ARGV[3])
local tags, own = tonumber(ARGV[4]), 4 + ARGV[4]
local time = redis.call('TIME')
local taken = {}

-- A first write that a server out of memory does not refuse: those after it then pass too.
redis.call('HDEL', KEYS[1], '')

local function wanted()
  return tags - #taken / 3
end

local function hand_out(list, tenant, message)
  for _, field in ipairs({ list, tenant, message }) do
    taken[#taken + 1] = field
  end
end

local function may_have_a_place(tenant)
  return free > reserved or (held[tenant] or 0) < reserved
end

-- Sort what producers have pushed to a list: a message goes behind its tenant's others, and a
-- tenant that had none is the last of all. The server moves it: it is not written down again.
local function sort(list)
  local turns, count, bytes, known = turns_of(list), 0, 0, {}
  local message = redis.call('LINDEX', list, -1)
  while message and count < SORTED and bytes < SORTED_BYTES do
    local tenant = tenant_of(message)
    if not known[tenant] then
      known[tenant] = tenants_list(list, tenant)
      if redis.call('EXISTS', known[tenant]) == 0 then
        redis.call('RPUSH', turns, tenant)
      end
    end
    redis.call('LMOVE', list, known[tenant], 'RIGHT', 'LEFT')
    count, bytes = count + 1, bytes + #message
    message = redis.call('LINDEX', list, -1)
  end
end

-- Lease a message to the worker.
local function lease(list, tenant, message)
  local tag = ARGV[5 + #taken / 3]
  -- The text of the message is kept as it is: cjson would change numbers and empty arrays.
  redis.call('HSET', KEYS[1], tag, '[' .. message .. ',"",' .. cjson.encode(list) .. ']')
  redis.call('ZADD', KEYS[2], time[1], tag)
  free, held[tenant] = free - 1, (held[tenant] or 0) + 1
  hand_out(list, tenant, message)
end

-- Take a message off its tenant's list, and have the tenant wait for its next turn.
local function take(list, tenant, message, behind)
  local turns, waiting = turns_of(list), tenants_list(list, tenant)
  if behind == 0 then
    redis.call('RPOP', waiting)
  else
    redis.call('LREM', waiting, -1, message)
  end
  redis.call('LREM', turns, 1, tenant)
  if redis.call('EXISTS', waiting) == 1 then
    redis.call('RPUSH', turns, tenant)
  end
  lease(list, tenant, message)
end

-- Offer a list's messages, one of each tenant in turn. `offer(list, tenant, message, behind)` takes
-- it, or returns true: it is left, and the one behind it comes in the tenant's next turn. `behind`
-- says how many of the tenant were left before it. After `window` of a list no more are offered.
local function in_turn(list, window, offer)
  if wanted() == 0 then
    return
  end
  sort(list)
  local most = wanted() + window -- tenants, beside those who hold places and may be passed over
  for _ in pairs(held) do
    most = most + 1
  end
  local ring, turn, left, of_tenant = redis.call('LRANGE', turns_of(list), 0, most), 1, 0, {}
  while wanted() > 0 and left < window and ring[turn] do
    local tenant = ring[turn]
    local behind = of_tenant[tenant] or 0
    local message = may_have_a_place(tenant)
      and redis.call('LINDEX', tenants_list(list, tenant), -1 - behind)
    if message then
      if offer(list, tenant, message, behind) then
        left, of_tenant[tenant] = left + 1, behind + 1
      end
      ring[#ring + 1] = tenant
    end
    turn = turn + 1
  end
end
