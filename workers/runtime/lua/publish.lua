-- Pushes a message to its queue, unless it was pushed before: the reply to that may be lost. What follows
-- a task is not pushed either if another run of the task has ended in another way. Follows outcome.lua.
-- KEYS[1] queue: list, messages
-- KEYS[2] published: string, how many messages of a sequence were pushed
-- KEYS[3] result: string, of the task that the message follows, as Celery stores it; only if it follows one
-- ARGV[1] message: JSON
-- ARGV[2] number: of the message in its sequence, from 1
-- ARGV[3] ttl: seconds to remember the sequence
-- ARGV[4] not after: string, the states of a stored result with which the message is not pushed, with
--           spaces between them; only with KEYS[3]
-- Returns 1 when it was pushed, 0 when it had been, or is not pushed.

local message, number, ttl, not_after = unpack(ARGV)

if tonumber(redis.call('GET', KEYS[2]) or 0) >= tonumber(number) then
  return 0
end
if KEYS[3] then
  local state = stored_state(KEYS[3])
  if state and string.find(' ' .. not_after .. ' ', ' ' .. state .. ' ', 1, true) then
    return 0
  end
end
redis.call('SET', KEYS[2], number, 'EX', ttl)
redis.call('LPUSH', KEYS[1], message)
return 1
