-- Stores the state and fields of a job, and when it is due again.
-- KEYS[1]  job: hash, the job's fields
-- KEYS[2]  jobs: zset, intents of live jobs -> due time in Unix seconds
-- ARGV[1]  token: the caller's fencing token
-- ARGV[2]  intent: the job's id
-- ARGV[3]  old_state: the job's, as the caller knows it
-- ARGV[4]  new_state: may be the same
-- ARGV[5]  due: Unix seconds
-- ARGV[6]  and on: field, value, ...
-- Returns 1, or 0 when the caller does not hold the job's lease.

local token, intent, old_state, new_state, due = unpack(ARGV, 1, 5)
local state, job_token = unpack(redis.call('HMGET', KEYS[1], 'state', 'token'))

-- A call repeated after a lost answer finds the job in its new state.
if job_token ~= token or (state ~= old_state and state ~= new_state) then
  return 0
end
-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('ZREM', KEYS[2], '')
redis.call('HSET', KEYS[1], 'state', new_state, unpack(ARGV, 6))
redis.call('ZADD', KEYS[2], due, intent)
return 1
