-- Count the costs of runs of one tenant's tasks, once for each run, and remove the tasks' reservations.
-- A cost counts on the day of the reservation; without a reservation, today.
-- Keys and clock: ledger.lua.
-- KEYS[...] settled: string, of each run; it exists once the run is counted; from 6 on
-- ARGV[2]  TTL: seconds for which a run is remembered
-- ARGV[...] runs: two arguments for each, the id of its task and its nano-dollars; a run without a
--           cost is not remembered
-- Returns how many runs were counted; nothing has changed for those that were counted before.

local counted = 0

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('ZREM', KEYS[3], '')
for i = 1, #KEYS - 5 do
  local task, cost = ARGV[1 + 2 * i], tonumber(ARGV[2 + 2 * i])
  if cost <= 0 or redis.call('SET', KEYS[5 + i], ARGV[2 + 2 * i], 'EX', ARGV[2], 'NX') then
    local day = release(task) or date(clock(ARGV[1]))
    if cost > 0 then
      add(day, 'spent', cost)
    end
    counted = counted + 1
  end
end
return counted
