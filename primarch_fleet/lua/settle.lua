-- Count what a run of a task has cost, once a run, and give the task's reservation back. It counts
-- on the day of the reservation; without one, today.
-- Returns 1, or 0 for a run that was counted before: then nothing has changed.
--
-- KEYS[6] settled  text  exists once this run of the task was counted
-- ARGV[2] task id
-- ARGV[3] cost     micro-dollars; a run that cost nothing is not remembered
-- ARGV[4] seconds for which the run is remembered

local cost = tonumber(ARGV[3])

if cost > 0 and not redis.call('SET', KEYS[6], ARGV[3], 'EX', ARGV[4], 'NX') then
  return 0
end
local day = release(ARGV[2]) or date(clock(ARGV[1]))
if cost > 0 then
  add(day, 'spent', cost)
end
return 1
