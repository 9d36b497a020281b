-- Part of scripts that change a tenant's stored files. Their KEYS begin with:
-- KEYS[1]  expiry: zset, ids of the tenant's files, and of unfinished uploads, by their end in Unix
--          seconds
-- KEYS[2]  sizes: hash, id -> bytes, and 'total' -> their sum

local MAX_PRUNED = 100

-- Forget a file in the tenant's sum.
local function forget(id)
  local bytes = redis.call('HGET', KEYS[2], id)
  if bytes then
    redis.call('HINCRBY', KEYS[2], 'total', -tonumber(bytes))
    redis.call('HDEL', KEYS[2], id)
  end
  redis.call('ZREM', KEYS[1], id)
end

-- Forget files that have expired.
local function prune(now)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, MAX_PRUNED)) do
    forget(id)
  end
end
