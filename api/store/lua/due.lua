-- Claims what is due, of a tenant that is not busy: part of the scripts that claim.
-- Members are '<id> <tenant>'. If all that a call looks at are of busy tenants, they step back for some
-- seconds, so that the next call sees the others.
-- ARGV[1]  lease: seconds for which the caller has what it claims
-- ARGV[2]  max scanned: members that this call looks at
-- ARGV[3] and on: busy tenants

local STEP_BACK_SECONDS = 5

local now = tonumber(redis.call('TIME')[1])

-- The first reply of `take(member)`, with its member leased in the zset `due`; false if there is none.
local function claim(due, take)
  local busy = {}
  for i = 3, #ARGV do
    busy[ARGV[i]] = true
  end
  local members = redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, ARGV[2])
  for _, member in ipairs(members) do
    local reply = not busy[string.match(member, '^%S+ (.*)$')] and take(member)
    if reply then
      redis.call('ZADD', due, now + tonumber(ARGV[1]), member)
      return reply
    end
  end
  if #members == tonumber(ARGV[2]) then
    for _, member in ipairs(members) do
      redis.call('ZADD', due, 'XX', now + STEP_BACK_SECONDS, member)
    end
  end
  return false
end
