-- What the scripts begin with that push messages: as many of the last KEYS are lists of queues as
-- the last ARGV are messages, one for each.

-- The percentage of its memory that the server uses, if that is more than a share of it; nil where
-- the memory is not limited, or where the server makes room by itself.
local function too_full(share)
  local info = redis.call('INFO', 'memory')
  local limit = tonumber(info:match('\nmaxmemory:(%d+)'))
  if limit > 0 and info:match('\nmaxmemory_policy:(%a+)') == 'noeviction' then
    local used = tonumber(info:match('used_memory:(%d+)'))
    return used >= share * limit and math.floor(100 * used / limit) or nil
  end
end

local function push(count)
  for i = count - 1, 0, -1 do
    redis.call('LPUSH', KEYS[#KEYS - i], ARGV[#ARGV - i])
  end
end
