-- What the scripts begin with that put requests among those that wait in a group, or take them away.
--
-- KEYS[1] waiting    zset  request id by the time since when it waits
-- KEYS[2] deadlines  zset  request id by its deadline, those that have one
-- KEYS[3] totals     hash  bytes, inputs, tokens of what waits
-- KEYS[4] sizes      hash  request id -> "bytes inputs tokens deadline", deadline 0 for none

local function size(id)
  return string.match(redis.call('HGET', KEYS[4], id), '(%S+) (%S+) (%S+) (%S+)')
end

local function count(sign, bytes, inputs, tokens)
  redis.call('HINCRBY', KEYS[3], 'bytes', sign * bytes)
  redis.call('HINCRBY', KEYS[3], 'inputs', sign * inputs)
  redis.call('HINCRBY', KEYS[3], 'tokens', sign * tokens)
end

-- Let a request wait, of which KEYS[4] has the size.
local function wait(id, since)
  local bytes, inputs, tokens, deadline = size(id)
  redis.call('ZADD', KEYS[1], since, id)
  if tonumber(deadline) > 0 then
    redis.call('ZADD', KEYS[2], deadline, id)
  end
  count(1, bytes, inputs, tokens)
end

-- Take a request away; false when it does not wait here.
local function take(id)
  if redis.call('ZREM', KEYS[1], id) == 0 then
    return false
  end
  redis.call('ZREM', KEYS[2], id)
  local bytes, inputs, tokens = size(id)
  count(-1, bytes, inputs, tokens)
  return true
end

