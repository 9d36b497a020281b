-- Push messages to the lists of queues: functions that the scripts of lua/publish share.
-- The last KEYS are the lists and the last ARGV the messages, in the same order.

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

local function push(count)
  for i = count - 1, 0, -1 do
    redis.call('LPUSH', KEYS[#KEYS - i], ARGV[#ARGV - i])
  end
end
