-- Takes, renews or releases the lease of a job.
-- KEYS[1]  job: hash, the job's fields
-- KEYS[2]  fence: string, the last fencing token
-- ARGV[1]  token: the caller's fencing token, '' to take the lease
-- ARGV[2]  now: Unix seconds
-- ARGV[3]  lease_until: Unix seconds, 0 to release the lease
-- Returns the fencing token under which the caller holds the job, false when another scheduler
-- holds it or the job is done.

local token, now, new_lease_until = unpack(ARGV)
local state, job_token, lease_until =
  unpack(redis.call('HMGET', KEYS[1], 'state', 'token', 'lease_until'))

if not state or state == 'DONE' then
  return false
end
-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('HDEL', KEYS[1], '')
if token == '' then
  if tonumber(lease_until) > tonumber(now) then
    return false
  end
  token = tostring(redis.call('INCR', KEYS[2]))
elseif token ~= job_token then
  return false
end
redis.call('HSET', KEYS[1], 'token', token, 'lease_until', new_lease_until)
return token
