-- Claim the delivery that waits longest, of a tenant that is not busy.
-- KEYS[1]  webhooks: hash, '<id> <tenant>' of a delivery -> '<Unix seconds of the event> <JSON>'
-- KEYS[2]  due: zset, '<id> <tenant>' by the Unix seconds from which any process may send it
-- KEYS[3]  attempts: hash, '<id> <tenant>' -> the number of its attempts
-- ARGV[1]  lease: seconds until another process may send it
-- ARGV[2]  max scanned: deliveries that this call looks at
-- ARGV[3] and on: busy tenants
-- Returns '<id> <tenant>', its value of KEYS[1], the number of this attempt and the server's Unix
-- seconds; false if there is none. If all that it looked at are of busy tenants, they step back for
-- some seconds, so that the next call sees the others.

local STEP_BACK_SECONDS = 5

local now = tonumber(redis.call('TIME')[1])
local busy = {}
for i = 3, #ARGV do
  busy[ARGV[i]] = true
end

local members = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[2])
for _, member in ipairs(members) do
  local tenant = string.match(member, '^%S+ (.*)$')
  if not busy[tenant] then
    local text = redis.call('HGET', KEYS[1], member)
    if text then
      redis.call('ZADD', KEYS[2], now + tonumber(ARGV[1]), member)
      return { member, text, redis.call('HINCRBY', KEYS[3], member, 1), now }
    end
    redis.call('ZREM', KEYS[2], member)
  end
end
if #members == tonumber(ARGV[2]) then
  for _, member in ipairs(members) do
    redis.call('ZADD', KEYS[2], 'XX', now + STEP_BACK_SECONDS, member)
  end
end
return false
