-- Count the cost of a run of a task, once for each run, and remove the task's reservation.
-- The cost counts on the day of the reservation; without a reservation, today.
-- Keys and clock: ledger.lua.
-- KEYS[6]  settled: string, exists once this run of the task is counted
-- ARGV[2]  task: string, the task's id
-- ARGV[3]  cost: nano-dollars; a run without a cost is not remembered
-- ARGV[4]  TTL: seconds for which the run is remembered
-- Returns 1, or 0 if the run was counted before; nothing has changed then.

local cost = tonumber(ARGV[3])

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('ZREM', KEYS[3], '')
if cost > 0 and not redis.call('SET', KEYS[6], ARGV[3], 'EX', ARGV[4], 'NX') then
  return 0
end
local day = release(ARGV[2]) or date(clock(ARGV[1]))
if cost > 0 then
  add(day, 'spent', cost)
end
return 1
