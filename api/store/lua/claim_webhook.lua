-- Claim the delivery that waits longest, of a tenant that is not busy.
-- KEYS[1]  webhooks: hash, '<id> <tenant>' of a delivery -> '<Unix seconds of the event> <JSON>'
-- KEYS[2]  due: zset, '<id> <tenant>' by the Unix seconds from which any process may send it
-- KEYS[3]  attempts: hash, '<id> <tenant>' -> the number of its attempts
-- ARGV     see due.lua
-- Returns '<id> <tenant>', its value of KEYS[1], the number of this attempt and the server's Unix
-- seconds; false if there is none.

return claim(KEYS[2], function(member)
  local text = redis.call('HGET', KEYS[1], member)
  if text then
    return { member, text, redis.call('HINCRBY', KEYS[3], member, 1), now }
  end
  redis.call('ZREM', KEYS[2], member)
end)
