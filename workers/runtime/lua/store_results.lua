-- Store the results of tasks that have succeeded and publish them, unless an outcome is stored already.
-- Follows result.lua.
-- KEYS[...] tasks: two keys for each, its result, a string as Celery stores it, with the name of the
--           channel where subscribers wait for it; and its mark, a string that exists while messages of
--           the task are dropped
-- ARGV[1]  TTL: seconds for which the results are stored; 0 for no limit
-- ARGV[2]  mark TTL: seconds for which the marks are still needed
-- ARGV[...] tasks: two arguments for each, its id and the encoded result
-- Returns the numbers, from 1, of the tasks where a value is stored that is not a result in JSON;
-- nothing has changed for them.

local others = {}

for i = 1, #KEYS / 2 do
  local task, text = ARGV[1 + 2 * i], ARGV[2 + 2 * i]
  if store_state(task, KEYS[2 * i - 1], text, ARGV[1], KEYS[2 * i], ARGV[2]) < 0 then
    others[#others + 1] = i
  end
end
return others
