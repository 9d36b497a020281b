-- Claim the batch that waits longest, of a tenant that is not busy.
-- KEYS[1]  due: see create_batch.lua
-- KEYS[2]  owners: hash, '<id> <tenant>' -> the token of the process that has the batch
-- KEYS[3]  fence: string, the last token
-- ARGV[1]  lease: seconds for which the caller has the batch
-- ARGV[2]  max scanned: batches that this call looks at
-- ARGV[3] and on: busy tenants
-- Returns '<id> <tenant>' and the token, or false if there is none. If all that it looked at are of
-- busy tenants, they step back for some seconds, so that the next call sees the others.

local STEP_BACK_SECONDS = 5

local now = tonumber(redis.call('TIME')[1])
local busy = {}
for i = 3, #ARGV do
  busy[ARGV[i]] = true
end

local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])
for _, member in ipairs(members) do
  local tenant = string.match(member, '^%S+ (.*)$')
  if not busy[tenant] then
    local token = tostring(redis.call('INCR', KEYS[3]))
    redis.call('ZADD', KEYS[1], now + tonumber(ARGV[1]), member)
    redis.call('HSET', KEYS[2], member, token)
    return { member, token }
  end
end
if #members == tonumber(ARGV[2]) then
  for _, member in ipairs(members) do
    redis.call('ZADD', KEYS[1], now + STEP_BACK_SECONDS, member)
  end
end
return false
