-- Helpers of the scripts that change a group's backlog; this file is prepended to theirs.
-- KEYS[1]  waiting: zset, request id -> Unix seconds since when it waits
-- KEYS[2]  deadlines: zset, request id -> deadline in Unix seconds, of the requests that have one
-- KEYS[3]  totals: hash, "bytes", "inputs" and "tokens" of all waiting requests
-- KEYS[4]  sizes: hash, request id -> "bytes inputs tokens deadline", deadline 0 for none

local function size_of(id)
  return string.match(redis.call('HGET', KEYS[4], id), '(%S+) (%S+) (%S+) (%S+)')
end

local function add_to_totals(sign, bytes, inputs, tokens)
  redis.call('HINCRBY', KEYS[3], 'bytes', sign * bytes)
  redis.call('HINCRBY', KEYS[3], 'inputs', sign * inputs)
  redis.call('HINCRBY', KEYS[3], 'tokens', sign * tokens)
end

-- Add a request whose size is stored.
local function add_to_backlog(id, since)
  local bytes, inputs, tokens, deadline = size_of(id)
  redis.call('ZADD', KEYS[1], since, id)
  if tonumber(deadline) > 0 then
    redis.call('ZADD', KEYS[2], deadline, id)
  end
  add_to_totals(1, bytes, inputs, tokens)
end

-- Remove a request. Returns false when it does not wait here.
local function remove_from_backlog(id)
  if redis.call('ZREM', KEYS[1], id) == 0 then
    return false
  end
  redis.call('ZREM', KEYS[2], id)
  local bytes, inputs, tokens = size_of(id)
  add_to_totals(-1, bytes, inputs, tokens)
  return true
end
