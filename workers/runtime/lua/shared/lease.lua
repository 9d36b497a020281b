-- The end of a lease. Scripts that end one start with it. Follows message.lua.
--
-- leases: hash, lease tag -> '[message, "", list it came from]'
-- renewals: zset, lease tag by the Unix seconds of its last renewal

-- End a lease; only if it was not renewed for `idle` seconds, 0 for any lease. Returns false if it
-- has ended or was renewed; nothing has changed then.
local function end_lease(leases, renewals, tag, idle)
  local renewed_at = redis.call('ZSCORE', renewals, tag)
  local entry = redis.call('HGET', leases, tag)
  if not renewed_at or not entry then
    return false
  end
  if tonumber(idle) > 0 and tonumber(renewed_at) > redis.call('TIME')[1] - idle then
    return false
  end
  redis.call('ZREM', renewals, tag)
  redis.call('HDEL', leases, tag)
  redis.call('ZREM', LEASED_TASKS, leased_task(entry, tag))
  return true
end
