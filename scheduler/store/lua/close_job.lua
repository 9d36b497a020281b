-- Ends a job without requests: releases its reserved tokens and keeps its fields for a while.
-- KEYS[1]  job: hash, the job's fields
-- KEYS[2]  members: zset, request id -> its line in the job's file
-- KEYS[3]  jobs: zset, intents of live jobs -> due time in Unix seconds
-- KEYS[4]  reserved: hash, provider queue -> tokens of its live jobs
-- KEYS[5]  ended: zset, ids of batches whose jobs are done -> when, in Unix seconds
-- ARGV[1]  token: the caller's fencing token
-- ARGV[2]  intent: the job's id
-- ARGV[3]  now: Unix seconds
-- ARGV[4]  ttl: seconds to keep the job's fields
-- ARGV[5]  provider_queue: the field of KEYS[4]
-- Returns how many requests the job still has (0: it is done), -1 when the caller does not hold its
-- lease.

local token, intent, now, ttl, provider_queue = unpack(ARGV)
local state, job_token, tokens, batch_id =
  unpack(redis.call('HMGET', KEYS[1], 'state', 'token', 'tokens', 'batch_id'))

if job_token ~= token then
  return -1
end
local remaining = redis.call('ZCARD', KEYS[2])
if remaining == 0 and state ~= 'DONE' then
  redis.call('ZREM', KEYS[3], intent) -- first: a server out of memory allows it and what follows
  redis.call('HSET', KEYS[1], 'state', 'DONE', 'since', now)
  redis.call('EXPIRE', KEYS[1], ttl)
  redis.call('HINCRBY', KEYS[4], provider_queue, -tokens)
  redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', now - ttl)
  if batch_id and batch_id ~= '' then
    redis.call('ZADD', KEYS[5], now, batch_id)
  end
end
return remaining
