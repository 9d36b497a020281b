-- Send requests of a job back to their group, and count it against them.
-- Returns how many went, or -1 when the caller no longer holds the job.
--
-- KEYS[1] job        hash  its fields
-- KEYS[2] members    zset  the job's request ids by line
-- KEYS[3] waiting    zset  request id by the time since when it waits
-- KEYS[4] deadlines  zset  request id by its deadline
-- KEYS[5] totals     hash  bytes, inputs, tokens of what waits
-- KEYS[6] sizes      hash  request id -> "bytes inputs tokens deadline"
-- KEYS[7] counter    hash  request id -> how often
-- ARGV    token, now, by how much to count, then request ids

local went = 0

if redis.call('HGET', KEYS[1], 'token') ~= ARGV[1] then
  return -1
end
for index = 4, #ARGV do
  local id = ARGV[index]
  if redis.call('ZREM', KEYS[2], id) == 1 then
    local bytes, inputs, tokens, deadline =
      string.match(redis.call('HGET', KEYS[6], id), '(%S+) (%S+) (%S+) (%S+)')
    redis.call('ZADD', KEYS[3], ARGV[2], id)
    if tonumber(deadline) > 0 then
      redis.call('ZADD', KEYS[4], deadline, id)
    end
    redis.call('HINCRBY', KEYS[5], 'bytes', bytes)
    redis.call('HINCRBY', KEYS[5], 'inputs', inputs)
    redis.call('HINCRBY', KEYS[5], 'tokens', tokens)
    if ARGV[3] ~= '0' then
      redis.call('HINCRBY', KEYS[7], id, ARGV[3])
    end
    went = went + 1
  end
end
return went
