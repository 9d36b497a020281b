-- Move a message that still waits to another queue, where it is the next one.
--
-- KEYS[1]  list    that it was pushed to
-- KEYS[2]  list    of the other queue that producers push to
-- KEYS[3]  string  exists while a worker serves the other queue
-- ARGV[1]  string  the message
-- ARGV[2]  string  the message as it is to be there
--
-- Returns 1, or 0 when it does not wait any more, or nobody serves the other queue: then nothing has
-- changed.

local tenant = tenant_of(ARGV[1])
local source = tenants_list(KEYS[1], tenant)

if redis.call('EXISTS', KEYS[3]) == 0 then
  return 0
end
if redis.call('LREM', source, -1, ARGV[1]) == 1 then
  if redis.call('EXISTS', source) == 0 then
    redis.call('LREM', turns_of(KEYS[1]), 1, tenant)
  end
elseif redis.call('LREM', KEYS[1], -1, ARGV[1]) == 0 then
  return 0
end
put_back(KEYS[2], ARGV[2])
return 1
