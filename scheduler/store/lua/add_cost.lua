-- Adds to what a job cost and saved, and to the tenants whose requests it answered.
-- KEYS[1]  job: hash, the job's fields
-- KEYS[2]  tenants: set, tenants who got responses from the job
-- ARGV[1]  cost: nano-dollars
-- ARGV[2]  saving: nano-dollars
-- ARGV[3]  ttl: seconds to keep KEYS[2]
-- ARGV[4]  and on: tenants
-- Returns nothing. A job that Redis has forgotten, for its data went back, stays forgotten.

local cost, saving, ttl = unpack(ARGV, 1, 3)

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('HDEL', KEYS[1], '')
if redis.call('EXISTS', KEYS[1]) == 0 then
  return
end
redis.call('HINCRBY', KEYS[1], 'cost_nanousd', cost)
redis.call('HINCRBY', KEYS[1], 'saving_nanousd', saving)
redis.call('SADD', KEYS[2], unpack(ARGV, 4))
redis.call('EXPIRE', KEYS[2], ttl)
