-- Returns requests of a job to their group's backlog, and counts that against them.
-- KEYS[1]  to KEYS[4]: see backlog.lua
-- KEYS[5]  job: hash, the job's fields
-- KEYS[6]  members: zset, request id -> its line in the job's file
-- KEYS[7]  counter: hash, request id -> attempts counted so far
-- ARGV[1]  token: the caller's fencing token
-- ARGV[2]  now: Unix seconds
-- ARGV[3]  increment: what each request's counter is raised by
-- ARGV[4]  and on: request ids
-- Returns how many requests were returned, -1 when the caller does not hold the job's lease.

local token, now, increment = unpack(ARGV, 1, 3)
local requeued = 0

if redis.call('HGET', KEYS[5], 'token') ~= token then
  return -1
end
for index = 4, #ARGV do
  local id = ARGV[index]
  if redis.call('ZREM', KEYS[6], id) == 1 then
    add_to_backlog(id, now)
    if increment ~= '0' then
      redis.call('HINCRBY', KEYS[7], id, increment)
    end
    requeued = requeued + 1
  end
end
return requeued
