-- Put a message on its queue, unless it was put there before.
-- Returns 1 when it was put there, 0 when it had been.
--
-- KEYS[1] queue  list  messages
-- KEYS[2] place  text  exists once the completion's message of this number was sent
-- KEYS[3] name   text  exists once the message of this id was sent
-- ARGV    message, seconds to remember it

if redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then
  return 0
end
redis.call('SET', KEYS[2], '', 'EX', ARGV[2])
redis.call('SET', KEYS[3], '', 'EX', ARGV[2])
redis.call('LPUSH', KEYS[1], ARGV[1])
return 1
