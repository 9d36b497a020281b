-- End a lease, and put its message back in its queue or on the list of dead letters.
-- Follows queue.lua.
-- KEYS[1]  leases: hash, lease tag -> '[message, "", list it came from]'
-- KEYS[2]  renewals: zset, lease tag by the Unix seconds of its last renewal
-- KEYS[3]  target: list, where the message goes
-- ARGV[1]  tag: string, the lease
-- ARGV[2]  message: string, the text to put there
-- ARGV[3]  place: 'next' of its tenant in the queue of KEYS[3], or 'last' in KEYS[3]
-- ARGV[4]  idle: seconds, only if the lease was not renewed for so long; 0 for any lease
-- Returns 1, or 0 if the lease has ended or was renewed; nothing has changed then.

local renewed_at = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not renewed_at or redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 0
end
if tonumber(ARGV[4]) > 0 and tonumber(renewed_at) > redis.call('TIME')[1] - ARGV[4] then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
if ARGV[3] == 'next' then
  put_back(KEYS[3], ARGV[2])
else
  redis.call('LPUSH', KEYS[3], ARGV[2])
end
return 1
