-- Claim the batch that waits longest, of a tenant that is not busy.
-- KEYS[1]  due: see create_batch.lua
-- KEYS[2]  owners: hash, '<id> <tenant>' -> the token of the process that has the batch
-- KEYS[3]  fence: string, the last token
-- ARGV     see due.lua
-- Returns '<id> <tenant>' and the token, or false if there is none.

return claim(KEYS[1], function(member)
  local token = tostring(redis.call('INCR', KEYS[3]))
  redis.call('HSET', KEYS[2], member, token)
  return { member, token }
end)
