-- Moves requests into the job of a batch that the provider has and no job knows. A job that is DONE
-- starts again: its batch's results are read once more, for these requests.
-- KEYS[1]  to KEYS[4]: see backlog.lua
-- KEYS[5]  source: zset, request id -> its line; of the unsent job that the requests may be in
-- KEYS[6]  source_job: hash, that job's fields
-- KEYS[7]  members: zset, request id -> its line; of the adopted batch's job
-- KEYS[8]  job: hash, the adopted batch's job
-- KEYS[9]  jobs: zset, intents of live jobs -> due time in Unix seconds
-- KEYS[10] fence: string, the last fencing token
-- KEYS[11] reserved: hash, provider queue -> tokens of its live jobs
-- ARGV[1]  intent: of the adopted batch's job
-- ARGV[2]  batch_id: at the provider
-- ARGV[3]  now: Unix seconds
-- ARGV[4]  due: Unix seconds at which the job is polled first
-- ARGV[5]  provider_queue: the field of KEYS[11]
-- ARGV[6]  count: of the arguments that follow as field, value, ... of the job
-- ARGV[7]  and on: these; then request id, line, ...
-- Returns how many requests were moved; -1 when the job has another batch, or may create one.

local intent, batch_id, now, due, provider_queue = unpack(ARGV, 1, 5)
local count = tonumber(ARGV[6])
local state, job_batch = unpack(redis.call('HMGET', KEYS[8], 'state', 'batch_id'))
local is_sent = job_batch and job_batch ~= '' and state ~= 'DONE'
local moved, tokens = 0, 0

if state == 'SUBMITTING' or (is_sent and (job_batch ~= batch_id or state ~= 'SUBMITTED')) then
  return -1
end
local source_state = redis.call('HGET', KEYS[6], 'state')
local may_take = source_state == 'PREPARED' or source_state == 'UPLOADED'
for index = 7 + count, #ARGV, 2 do
  local id, line = ARGV[index], ARGV[index + 1]
  if remove_from_backlog(id) or (may_take and redis.call('ZREM', KEYS[5], id) == 1) then
    local _, _, request_tokens = size_of(id)
    redis.call('ZADD', KEYS[7], line, id)
    moved, tokens = moved + 1, tokens + tonumber(request_tokens)
  end
end
local is_unsent = state == 'PREPARED' or state == 'UPLOADED'
if moved == 0 and not is_unsent then
  return 0
end
if not is_sent then
  if state == 'DONE' then
    redis.call('PERSIST', KEYS[8])
    redis.call('HSET', KEYS[8], 'tokens', 0) -- close_job.lua gave them back
  elseif not is_unsent then
    redis.call('DEL', KEYS[8])
    redis.call('HSET', KEYS[8], 'created_at', now, 'requests', 0, 'tokens', 0)
  end
  -- A new token: an earlier holder of the job can change nothing any more.
  redis.call('HSET', KEYS[8], 'state', 'SUBMITTED', 'token', redis.call('INCR', KEYS[10]),
    'lease_until', 0, 'since', now, 'waits', 0, 'missing_since', 0, 'batch_id', batch_id,
    'adopted', 1, unpack(ARGV, 7, 6 + count))
  redis.call('ZADD', KEYS[9], due, intent)
end
redis.call('HINCRBY', KEYS[8], 'requests', moved)
redis.call('HINCRBY', KEYS[8], 'tokens', tokens)
redis.call('HINCRBY', KEYS[11], provider_queue, tokens)
return moved
