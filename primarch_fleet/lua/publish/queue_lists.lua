-- Push messages to the lists of queues: functions that the scripts of lua/publish share.
-- KEYS[...]  once: string, the idempotency keys of some messages; each exists once its message was
--            pushed, and has the request's fingerprint
-- KEYS[...]  lists: list, for each message the list of its queue; the last KEYS
-- ARGV[...]  messages: string, in the order of the lists; before the last three arguments
-- ARGV[...]  ids: JSON, the ids of the tasks; they become members of OPEN
-- ARGV[...]  TTL: seconds of an idempotency key
-- ARGV[...]  fingerprints: JSON, those of the requests with idempotency keys, in the order of the
--            keys; the last argument

-- The percentage of its memory that the server uses, if it is more than a share of it; nil if the
-- memory is not limited, if the server evicts keys, or if the share is empty: for no check.
local function memory_percent_above(share)
  if share == '' then
    return nil
  end
  local info = redis.call('INFO', 'memory')
  local limit = tonumber(info:match('\nmaxmemory:(%d+)'))
  if limit > 0 and info:match('\nmaxmemory_policy:(%a+)') == 'noeviction' then
    local used = tonumber(info:match('used_memory:(%d+)'))
    return used >= tonumber(share) * limit and math.floor(100 * used / limit) or nil
  end
end

-- zset: ids of tasks that were submitted and have no outcome yet, by the Unix seconds of the submit
local OPEN = 'fleet:open'

local fingerprints = cjson.decode(ARGV[#ARGV])
local once = #fingerprints

-- Whether one of the messages was pushed before, under its idempotency key. `keys` precede the
-- idempotency keys.
local function pushed_before(keys)
  return once > 0 and redis.call('EXISTS', unpack(KEYS, keys + 1, keys + once)) > 0
end

local function push(keys)
  local now = redis.call('TIME')[1]
  for _, id in ipairs(cjson.decode(ARGV[#ARGV - 2])) do
    redis.call('ZADD', OPEN, now, id) -- first: no message may lack it
  end
  for i = #KEYS - keys - once - 1, 0, -1 do
    redis.call('LPUSH', KEYS[#KEYS - i], ARGV[#ARGV - 3 - i])
  end
  for i, fingerprint in ipairs(fingerprints) do
    redis.call('SET', KEYS[keys + i], fingerprint, 'EX', ARGV[#ARGV - 1])
  end
end
