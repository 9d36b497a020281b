-- Removes completed requests from the lane and remembers their outcome.
-- KEYS[1]  to KEYS[4]: see backlog.lua
-- KEYS[5]  requests: hash, request id -> record
-- KEYS[6]  failures: hash, request id -> failed attempts
-- KEYS[7]  expiries: hash, request id -> batches that ended before it was executed
-- KEYS[8]  holds: hash, request id -> refusals of the account
-- KEYS[9]  withdrawals: hash, request id -> decision
-- KEYS[10] members: zset, request id -> its line; of the job that the requests may be in
-- KEYS[...] outcomes: string, of each request; it exists once the request's completion began
-- ARGV[1]  outcome: what KEYS[...] store
-- ARGV[2]  ttl: seconds to remember it
-- ARGV[...] ids: the requests'
-- Returns the ids of the requests that are in another group or job; nothing has changed for them.

local outcome, ttl, done, elsewhere = ARGV[1], ARGV[2], {}, {}

for i = 1, #ARGV - 2 do
  local id = ARGV[2 + i]
  if redis.call('HEXISTS', KEYS[5], id) == 1 then
    if redis.call('ZREM', KEYS[10], id) == 1
      or redis.call('HDEL', KEYS[9], id) == 1
      or remove_from_backlog(id) then
      redis.call('SET', KEYS[10 + i], outcome, 'EX', ttl)
      done[#done + 1] = id
    else
      elsewhere[#elsewhere + 1] = id
    end
  end
end
if done[1] then
  for k = 4, 8 do
    redis.call('HDEL', KEYS[k], unpack(done))
  end
end
return elsewhere
