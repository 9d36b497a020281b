-- Take the next messages and lease them in one step, so that a worker killed at any point loses none.
--
-- KEYS[3..] lists   that producers push to, most urgent list first; the oldest is at the right end
-- ARGV      '1'|'0' for each list: lease what comes from it, a tenant in turn, or its consumer does
--                   not acknowledge
--
-- Returns {list, tenant, message, ...} as take.lua says; empty when there is none for this worker.

-- Hand out from a list as it stands, for good.
local function drain(list)
  local message = wanted() > 0 and redis.call('RPOP', list)
  while message do
    hand_out(list, '', message)
    message = wanted() > 0 and redis.call('RPOP', list)
  end
end

for n = 3, #KEYS do
  if ARGV[own + n - 2] == '0' then
    drain(KEYS[n])
  else
    in_turn(KEYS[n], 1, take)
  end
end
return taken
