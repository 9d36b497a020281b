-- End a claimed batch, and make its files visible, in one step.
-- KEYS[1]  due: see create_batch.lua
-- KEYS[2]  owners: see claim_batch.lua
-- KEYS[3]  batch: hash, its fields
-- KEYS[4]  input: hash, the fields of its input file
-- KEYS[5]  files, KEYS[6] expiry: see publish_file.lua
-- KEYS[7]  webhooks, KEYS[8] due webhooks: see outbox.lua
-- KEYS[9] and on: file and parts of each file in turn, see publish_file.lua
-- ARGV[1]  member: '<id> <tenant>'
-- ARGV[2]  token: the caller's
-- ARGV[3]  TTL: seconds for which the batch is kept
-- ARGV[4]  file TTL: seconds for which its files are kept
-- ARGV[5]  index TTL: seconds for which the tenant's list of files is kept at least
-- ARGV[6]  status: the last one
-- ARGV[7]  fields: JSON, [field, value, ...] of the batch
-- ARGV[8]  new files: JSON, {id, [field, value, ...]} of each file
-- ARGV[9]  webhooks: JSON, [id, JSON, ...] of the deliveries that tell of the end
-- Returns 1 and how many deliveries the outbox has no room for; 0 and 0 if another process has the
-- batch or a file has expired, and nothing has changed.

local member, token, ttl, file_ttl, index_ttl, status = unpack(ARGV, 1, 6)
local files = cjson.decode(ARGV[8])

if redis.call('HGET', KEYS[2], member) ~= token then
  return { 0, 0 }
end
for i = 1, #files do
  if redis.call('EXISTS', KEYS[8 + 2 * i]) == 0 then
    return { 0, 0 }
  end
end
redis.call('ZREM', KEYS[1], member)
redis.call('HDEL', KEYS[2], member)
for i, file in ipairs(files) do
  publish(KEYS[7 + 2 * i], KEYS[8 + 2 * i], KEYS[5], KEYS[6], file[1], tonumber(file_ttl),
    index_ttl, file[2])
end
if redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('HINCRBY', KEYS[4], 'readers', -1)
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  redis.call('HSET', KEYS[3], 'status', status, status .. '_at', redis.call('TIME')[1],
    unpack(cjson.decode(ARGV[7])))
  redis.call('EXPIRE', KEYS[3], ttl)
end
return { 1, enqueue(KEYS[7], KEYS[8], cjson.decode(ARGV[9])) }
