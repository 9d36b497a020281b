-- Pushes a message to its queue, unless it was pushed before.
-- KEYS[1]  queue: list, messages
-- KEYS[2]  by_order: string, exists once the completion's message of this number was pushed
-- KEYS[3]  by_id: string, exists once the message of this task id was pushed
-- ARGV[1]  message: JSON
-- ARGV[2]  ttl: seconds to remember it
-- Returns 1 when it was pushed, 0 when it had been.

local message, ttl = unpack(ARGV)

if redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then
  return 0
end
-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[2], '', 'EX', ttl)
redis.call('SET', KEYS[3], '', 'EX', ttl)
redis.call('LPUSH', KEYS[1], message)
return 1
