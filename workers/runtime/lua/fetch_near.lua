-- Take messages as fetch.lua does, but leave to another worker what begins like something in its
-- prefix cache, as long as that worker keeps up.
--
-- KEYS[3]   hash    prefix -> its owner: the worker that took a message with it last
-- KEYS[4]   zset    prefix, by the server's time in seconds when a message with it was last taken
-- KEYS[5]   hash    worker -> '<server's time in seconds of a fetch> <messages it then held>
--                   <messages it could still take>'
-- KEYS[6..] lists   of one queue that producers push to, most urgent list first; all are leased
-- ARGV behind the tags, in this order:
--   worker         string  the one that fetches
--   load           number  messages it holds
--   patience       number  seconds since its last fetch after which a worker is not waited for
--   patience_full  number  as many for a worker that was full then
--   slack          number  how many times the average load it may hold for its prefixes' sake
--   least          number  messages that it may hold for them in any case
--   window         number  messages of a list that may be passed over
--   remembered     number  prefixes to remember
--
-- Returns {list, tenant, message, ...} as take.lua says; empty when there is none for this worker.
--
-- The rule (bounded loads after Mirrokni, Thorup and Zadimoghaddam, 2016): a message's owner is
-- that of its first, longest prefix that has one. A worker's last fetch counts for `patience`
-- seconds, or `patience_full` if it has been full since, but for places that are kept. Peers are this
-- worker and those that have room by their last fetch. The bound is slack * (their load + 1) / peers,
-- rounded up, and `least` at least.
--   no owner, or its last fetch does not count: anybody takes it, the oldest first.
--   the owner is a peer below the bound: the owner alone takes it.
--   the owner is a peer at the bound: any peer below the bound takes it.
--   the owner is full: whoever has room left after what the rules above gave.
-- Whoever takes a message owns all its prefixes.
--
-- Nothing starves: the peer with the least load is below the bound, since slack >= 1, so at any
-- moment some peer may take a given message. A peer that does not come is none `patience` seconds
-- later, and a full worker's messages wait only while all others are busy with their own, at most
-- `patience_full` seconds. One fetch passes over no more than `window` messages, one of each tenant
-- in turn.

local PREFIXES = '"fleet_prefixes": "' -- as json.dumps writes it; no other string can contain it
local READ = 8 * 17 -- characters of eight prefixes: a longer list is a mistake
local KEPT = 86400 -- seconds for which an unused queue's prefixes are remembered
local YES, PERHAPS, NO = 1, 2, 3

local worker, load = ARGV[own + 1], tonumber(ARGV[own + 2])
local patience, patience_full = tonumber(ARGV[own + 3]), tonumber(ARGV[own + 4])
local slack, least = tonumber(ARGV[own + 5]), tonumber(ARGV[own + 6])
local window, remembered = tonumber(ARGV[own + 7]), tonumber(ARGV[own + 8])
local now = time[1] + time[2] / 1e6

-- A first write that a server out of memory does not refuse: those after it then pass too.
redis.call('HDEL', KEYS[5], '')

-- The others whose last fetch counts; how many peers there are, and what they hold.
local others, peers, total = {}, 1, load
local last_said, last_time
local entries = redis.call('HGETALL', KEYS[5])
for i = 1, #entries, 2 do
  local name, at, its_load, left = entries[i], string.match(entries[i + 1], '^(%S+) (%d+) (%d+)$')
  local full = left == '0'
  local age = math.abs(now - at) -- large also after the server's clock was put back
  if name == worker then
    last_said, last_time = its_load .. ' ' .. left, at
  elseif age > (full and patience_full or patience) then
    redis.call('HDEL', KEYS[5], name)
  else
    others[name] = { load = tonumber(its_load), full = full }
    if not full then
      peers, total = peers + 1, total + its_load
    end
  end
end

local function prefixes_of(message)
  local found = {}
  local _, before = string.find(message, PREFIXES, 1, true)
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

local function own_and_take(list, tenant, message)
  for _, prefix in ipairs(prefixes_of(message)) do
    redis.call('HSET', KEYS[3], prefix, worker)
    redis.call('ZADD', KEYS[4], now, prefix)
  end
  load, total = load + 1, total + 1
  take(list, tenant, message)
end

local spare

local function offer(list, tenant, message)
  local may = verdict(prefixes_of(message))
  if may == YES then
    return own_and_take(list, tenant, message)
  elseif may == PERHAPS then
    spare[#spare + 1] = { list, tenant, message }
  end
  return true
end

for n = 6, #KEYS do
  spare = {}
  in_turn(KEYS[n], window, offer)
  for _, one in ipairs(spare) do
    if wanted() > 0 and may_have_a_place(one[2]) then
      own_and_take(unpack(one))
    end
  end
end

-- Idle workers ask many times a second: write only what is news.
local says = string.format('%d %d', load, math.max(0, free - reserved))
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
