-- Take messages as fetch.lua does, but leave to another worker what begins like something in its
-- prefix cache, as long as that worker keeps up.
--
-- KEYS[1]   hash    lease tag -> '[message, "", list it came from]'
-- KEYS[2]   zset    lease tag, by the server's time in seconds when the lease was last renewed
-- KEYS[3]   hash    prefix -> its owner: the worker that took a message with it last
-- KEYS[4]   zset    prefix, by the server's time in seconds when a message with it was last taken
-- KEYS[5]   hash    worker -> '<server's time in seconds of a fetch> <messages it then held>
--                   <messages it could still take>'
-- KEYS[6..] lists   the waiting messages of one queue, most urgent list first; the next one is at
--                   the right end; all are leased
-- ARGV[1]   string  the worker that fetches
-- ARGV[2]   number  messages it holds
-- ARGV[3]   number  messages it may take now or later, before it gives one back
-- ARGV[4]   number  seconds since its last fetch after which a worker is not waited for
-- ARGV[5]   number  as many for a worker that was full then
-- ARGV[6]   number  how many times the average load a worker may hold for its prefixes' sake
-- ARGV[7]   number  messages that it may hold for them in any case
-- ARGV[8]   number  messages of a list that may be passed over
-- ARGV[9]   number  prefixes to remember
-- ARGV[10..] strings lease tags, unique to this fetch: one for each message it may take
--
-- Returns {list, message, list, message, ...}, the first message under the first tag and so on;
-- empty when there is none for this worker.
--
-- The rule (bounded loads after Mirrokni, Thorup and Zadimoghaddam, 2016): a message's owner is
-- that of its first, longest prefix that has one. A worker's last fetch counts for ARGV[4] seconds,
-- or ARGV[5] if it has been full since. Peers are this worker and those that have room by their
-- last fetch. The bound is ARGV[6] * (their load + 1) / peers, rounded up, and ARGV[7] at least.
--   no owner, or its last fetch does not count: anybody takes it, the oldest first.
--   the owner is a peer below the bound: the owner alone takes it.
--   the owner is a peer at the bound: any peer below the bound takes it.
--   the owner is full: whoever has room left after what the rules above gave.
-- Whoever takes a message owns all its prefixes.
--
-- Nothing starves: the peer with the least load is below the bound, since ARGV[6] >= 1, so at any
-- moment some peer may take a given message. A peer that does not come is none ARGV[4] seconds
-- later, and a full worker's messages wait only while all others are busy with their own, at most
-- ARGV[5] seconds. One fetch lets a message be overtaken only by those within ARGV[8] places.

local HEADER = '"fleet_prefixes": "' -- as json.dumps writes it; no other string can contain it
local READ = 8 * 17 -- characters of eight prefixes: a longer list is a mistake
local KEPT = 86400 -- seconds for which an unused queue's prefixes are remembered
local YES, PERHAPS, NO = 1, 2, 3

local worker, load, room = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local patience, patience_full = tonumber(ARGV[4]), tonumber(ARGV[5])
local slack, least = tonumber(ARGV[6]), tonumber(ARGV[7])
local window, remembered = tonumber(ARGV[8]), tonumber(ARGV[9])
local tags = #ARGV - 9
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local taken = {}

-- A first write that a server out of memory does not refuse: those after it then pass too.
redis.call('HDEL', KEYS[5], '')

-- The others whose last fetch counts; how many peers there are, and what they hold.
local others, peers, total = {}, 1, load
local last_said, last_time
local entries = redis.call('HGETALL', KEYS[5])
for i = 1, #entries, 2 do
  local name, at, held, left = entries[i], string.match(entries[i + 1], '^(%S+) (%d+) (%d+)$')
  local full = left == '0'
  local age = math.abs(now - at) -- large also after the server's clock was put back
  if name == worker then
    last_said, last_time = held .. ' ' .. left, at
  elseif age > (full and patience_full or patience) then
    redis.call('HDEL', KEYS[5], name)
  else
    others[name] = { load = tonumber(held), full = full }
    if not full then
      peers, total = peers + 1, total + held
    end
  end
end

local function prefixes_of(message)
  local found = {}
  local _, before = string.find(message, HEADER, 1, true)
  if before then
    local listed = string.match(string.sub(message, before + 1, before + READ), '^[%x,]*')
    for prefix in string.gmatch(listed, '%x+') do
      found[#found + 1] = prefix
    end
  end
  return found
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

-- Whether to take a message: at once, if nothing else is left to take, or not.
local function verdict(prefixes)
  local owner = owner_of(prefixes)
  local other = others[owner or '']
  if owner ~= worker and not other then
    return YES
  end
  if other and other.full then
    return PERHAPS
  end
  local bound = math.max(least, math.ceil(slack * (total + 1) / peers))
  return load < bound and (not other or other.load >= bound) and YES or NO
end

local function take(list, message, prefixes)
  local tag = ARGV[10 + #taken / 2]
  redis.call('LREM', list, -1, message)
  -- The text of the message is kept as it is: cjson would change numbers and empty arrays.
  redis.call('HSET', KEYS[1], tag, '[' .. message .. ',"",' .. cjson.encode(list) .. ']')
  redis.call('ZADD', KEYS[2], time[1], tag)
  for _, prefix in ipairs(prefixes) do
    redis.call('HSET', KEYS[3], prefix, worker)
    redis.call('ZADD', KEYS[4], now, prefix)
  end
  load, total, room = load + 1, total + 1, room - 1
  taken[#taken + 1] = list
  taken[#taken + 1] = message
end

local function take_from(list)
  local passed, spare = 0, {}
  while passed < window and #taken < 2 * tags do
    local message = redis.call('LINDEX', list, -1 - passed)
    if not message then
      break
    end
    local prefixes = prefixes_of(message)
    local may = verdict(prefixes)
    if may == YES then
      take(list, message, prefixes)
    else
      passed = passed + 1
      if may == PERHAPS then
        spare[#spare + 1] = { message, prefixes }
      end
    end
  end
  for i = 1, math.min(#spare, tags - #taken / 2) do
    take(list, unpack(spare[i]))
  end
end

for i = 6, #KEYS do
  take_from(KEYS[i])
end

-- Idle workers ask many times a second: write only what is news.
local says = string.format('%d %d', load, room)
if says ~= last_said or math.abs(now - last_time) > patience / 2 then
  redis.call('HSET', KEYS[5], worker, string.format('%.6f ', now) .. says)
end

if #taken > 0 then
  local excess = redis.call('ZCARD', KEYS[4]) - remembered
  local forgotten = excess > 0 and redis.call('ZPOPMIN', KEYS[4], excess) or {}
  for i = 1, #forgotten, 2 do
    redis.call('HDEL', KEYS[3], forgotten[i])
  end
  redis.call('EXPIRE', KEYS[3], KEPT)
  redis.call('EXPIRE', KEYS[4], KEPT)
end
return taken
