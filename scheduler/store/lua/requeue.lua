-- Send requests of a job back to their group, and count it against them.
-- Returns how many went, or -1 when the caller no longer holds the job.
--
-- KEYS[5] job      hash  its fields
-- KEYS[6] members  zset  the job's request ids by line
-- KEYS[7] counter  hash  request id -> how often
-- ARGV    token, now, by how much to count, then request ids

local went = 0

if redis.call('HGET', KEYS[5], 'token') ~= ARGV[1] then
  return -1
end
for index = 4, #ARGV do
  local id = ARGV[index]
  if redis.call('ZREM', KEYS[6], id) == 1 then
    wait(id, ARGV[2])
    if ARGV[3] ~= '0' then
      redis.call('HINCRBY', KEYS[7], id, ARGV[3])
    end
    went = went + 1
  end
end
return went
