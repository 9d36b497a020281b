-- Take messages as fetch.lua does, but leave a message to the worker whose prefix cache has its
-- start, as long as that worker keeps up.
-- Keys and arguments: take.lua, which this follows; then:
-- KEYS[3]     owners: hash, prefix -> its owner, the worker that last took a message with it
-- KEYS[4]     recent: zset, prefix by the Unix seconds when a message with it was last taken
-- KEYS[5]     workers: hash, worker -> '<Unix seconds of its last fetch> <its load> <its room>', as
--               they were after that fetch
-- KEYS[6...]  lists: list, the lists of one queue that producers push to, most urgent first
-- ARGV after these, in this order:
--   worker: string, the worker that fetches
--   load: number, messages that it holds
--   patience: seconds after its last fetch for which messages wait for an owner
--   full patience: the same for an owner that was full then
--   max load factor: number, times the average load; a worker takes messages for their prefixes
--     only while it has less
--   min load: number, with fewer messages a worker takes them in any case
--   max passed over: number, messages of a list that may be passed over
--   max prefixes: number, prefixes to remember
--   allowances: JSON, as within_rates says
-- Returns `done()` as take.lua says; empty if there is none for this worker.
--
-- The rule (bounded loads after Mirrokni, Thorup and Zadimoghaddam, 2016): the owner of a message is
-- the owner of its first, longest prefix that has an owner. A worker's last fetch counts for
-- `patience` seconds, or for `full patience` if the worker was full (without the reserved slots).
-- Peers are this worker and all whose last fetch counts and left room. The bound is
-- max load factor * (total load of the peers + 1) / peers, rounded up, and at least `min load`.
--   No owner, or its last fetch does not count: any worker takes the message, the oldest first.
--   The owner is a peer below the bound: only the owner takes it.
--   The owner is a peer at the bound: any peer below the bound takes it.
--   The owner is full: a worker takes it that has room left after the rules above.
-- The worker that takes a message becomes the owner of all its prefixes.
--
-- No message starves: the peer with the lowest load is below the bound, since max load factor >= 1,
-- so at any moment some peer may take a given message. A worker that does not fetch stops being a
-- peer after `patience` seconds, and a full worker's messages wait only while all others are busy
-- with their own, at most `full patience` seconds. One fetch passes over at most `max passed over`
-- messages, one of each tenant in turn.

local PREFIXES = '"fleet_prefixes": "' -- as json.dumps writes it; no other string can contain it
local MAX_HEADER_CHARS = 8 * 17 -- of eight prefixes: a longer header is an error
local TTL_SECONDS = 86400 -- for which the prefixes of an unused queue are remembered
local TAKE, TAKE_IF_ROOM, LEAVE = 1, 2, 3

local worker, load = ARGV[own_args + 1], tonumber(ARGV[own_args + 2])
local patience, full_patience = tonumber(ARGV[own_args + 3]), tonumber(ARGV[own_args + 4])
local max_load_factor, min_load = tonumber(ARGV[own_args + 5]), tonumber(ARGV[own_args + 6])
local max_passed_over, max_prefixes = tonumber(ARGV[own_args + 7]), tonumber(ARGV[own_args + 8])
local now = time[1] + time[2] / 1e6

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('HDEL', KEYS[5], '')

-- The other workers whose last fetch counts; the number of peers, and their load.
local others, peers, total_load = {}, 1, load
local last_report, last_fetch_at
local entries = redis.call('HGETALL', KEYS[5])
for i = 1, #entries, 2 do
  local name = entries[i]
  local fetch_at, its_load, room = string.match(entries[i + 1], '^(%S+) (%d+) (%d+)$')
  local full = room == '0'
  local age = math.abs(now - fetch_at) -- large also if the server's clock was set back
  if name == worker then
    last_report, last_fetch_at = its_load .. ' ' .. room, fetch_at
  elseif age > (full and full_patience or patience) then
    redis.call('HDEL', KEYS[5], name)
  else
    others[name] = { load = tonumber(its_load), full = full }
    if not full then
      peers, total_load = peers + 1, total_load + its_load
    end
  end
end

local function prefixes_of(message)
  local prefixes = {}
  local _, last = string.find(message, PREFIXES, 1, true)
  if last then
    local header = string.sub(message, last + 1, last + MAX_HEADER_CHARS)
    for prefix in string.gmatch(string.match(header, '^[%x,]*'), '%x+') do
      prefixes[#prefixes + 1] = prefix
    end
  end
  return prefixes
end

local function owner_of(prefixes)
  if #prefixes > 0 then
    for _, owner in ipairs(redis.call('HMGET', KEYS[3], unpack(prefixes))) do
      if owner then
        return owner
      end
    end
  end
end

local function decide(prefixes)
  local owner = owner_of(prefixes)
  local other = others[owner or '']
  if owner ~= worker and not other then
    return TAKE
  end
  if other and other.full then
    return TAKE_IF_ROOM
  end
  local bound = math.max(min_load, math.ceil(max_load_factor * (total_load + 1) / peers))
  return load < bound and (not other or other.load >= bound) and TAKE or LEAVE
end

local function own_and_take(list, tenant, message)
  for _, prefix in ipairs(prefixes_of(message)) do
    redis.call('HSET', KEYS[3], prefix, worker)
    redis.call('ZADD', KEYS[4], now, prefix)
  end
  load, total_load = load + 1, total_load + 1
  take(list, tenant, message)
end

local messages_if_room

local function offer(list, tenant, message)
  local decision = decide(prefixes_of(message))
  if decision == TAKE then
    return own_and_take(list, tenant, message)
  elseif decision == TAKE_IF_ROOM then
    messages_if_room[#messages_if_room + 1] = { list, tenant, message }
  end
  return true
end

local offer_within_rates = within_rates(ARGV[own_args + 9], offer)
for n = 6, #KEYS do
  messages_if_room = {}
  offer_in_turn(KEYS[n], max_passed_over, offer_within_rates)
  for _, entry in ipairs(messages_if_room) do
    local list, tenant, message = unpack(entry)
    if wanted() > 0 and may_use_a_slot(tenant) then
      own_and_take(list, tenant, message)
    end
  end
end

-- A worker may fetch many times a second, so write a report only if it changes or gets old.
local report = string.format('%d %d', load, math.max(0, free - reserved))
if report ~= last_report or math.abs(now - last_fetch_at) > patience / 4 then
  redis.call('HSET', KEYS[5], worker, string.format('%.6f ', now) .. report)
end

if #reply > 0 then
  local excess = redis.call('ZCARD', KEYS[4]) - max_prefixes
  local forgotten = excess > 0 and redis.call('ZPOPMIN', KEYS[4], excess) or {}
  for i = 1, #forgotten, 2 do
    redis.call('HDEL', KEYS[3], forgotten[i])
  end
  redis.call('EXPIRE', KEYS[3], TTL_SECONDS)
  redis.call('EXPIRE', KEYS[4], TTL_SECONDS)
end
return done()
