-- Pushes a message to its queue, unless it was pushed before: the reply to that may be lost.
-- KEYS[1] queue: list, messages
-- KEYS[2] published: string, how many messages of a sequence were pushed
-- ARGV[1] message: JSON
-- ARGV[2] number: of the message in its sequence, from 1
-- ARGV[3] ttl: seconds to remember the sequence
-- Returns 1 when it was pushed, 0 when it had been.

local message, number, ttl = unpack(ARGV)

if tonumber(redis.call('GET', KEYS[2]) or 0) >= tonumber(number) then
  return 0
end
redis.call('SET', KEYS[2], number, 'EX', ttl)
redis.call('LPUSH', KEYS[1], message)
return 1
