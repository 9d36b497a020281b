-- Take a dead letter off its list; its message goes to its queue again, as a new one. Follows
-- dead_letters.lua.
-- KEYS[1]  letters: list of JSON, newest first
-- KEYS[2]  counts: hash, as dead_letters.lua says
-- KEYS[3]  queue: list, where producers push
-- KEYS[4]  result: string, the task's result, as Celery stores it
-- ARGV[1]  letter: string, the text in the list
-- ARGV[2]  message: string, for the queue; empty to drop it
-- Returns 1, or 0 if another operator was first; nothing has changed then.

-- zset: ids of tasks that were submitted and have no outcome yet
local OPEN = 'fleet:open'
local FAILURE = '{"status": "FAILURE"' -- Celery encodes the state first

if not remove_letter(KEYS[1], KEYS[2], ARGV[1]) then
  return 0
end
if ARGV[2] ~= '' then
  if redis.call('GETRANGE', KEYS[4], 0, #FAILURE - 1) == FAILURE then
    redis.call('DEL', KEYS[4]) -- a stored outcome is final: the next one could not be stored
    redis.call('ZADD', OPEN, redis.call('TIME')[1], (string.gsub(KEYS[4], '^celery%-task%-meta%-', '')))
  end
  redis.call('LPUSH', KEYS[3], ARGV[2])
end
return 1
