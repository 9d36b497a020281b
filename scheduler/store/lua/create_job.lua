-- Creates a job, or adds to one just created: moves a group's oldest requests into it.
-- Requests past their deadline are skipped. A request larger than a limit gets a job of its own.
-- The job's tokens are reserved in its provider queue.
-- KEYS[1]  to KEYS[4]: see backlog.lua
-- KEYS[5]  members: zset, request id -> its line in the job's file, from 1
-- KEYS[6]  job: hash, the job's fields
-- KEYS[7]  jobs: zset, intents of live jobs -> due time in Unix seconds
-- KEYS[8]  fence: string, the last fencing token
-- KEYS[9]  reserved: hash, provider queue -> tokens of its live jobs
-- ARGV[1]  intent: the job's id
-- ARGV[2]  token: the job's fencing token, '' to create the job
-- ARGV[3]  now: Unix seconds
-- ARGV[4]  lease_until: Unix seconds
-- ARGV[5]  max_scanned: requests, most that this call looks at
-- ARGV[6]  max_requests: most in the job
-- ARGV[7]  max_bytes: most in the job
-- ARGV[8]  max_inputs: most in the job
-- ARGV[9]  max_tokens: most reserved in the provider queue
-- ARGV[10] provider_queue: the field of KEYS[9]
-- ARGV[11] and on: field, value, ... of a new job
-- Returns the job's fencing token, false without a job, and how many requests this call moved.

local intent, token, now, lease_until = unpack(ARGV, 1, 4)
local max_scanned, max_requests = tonumber(ARGV[5]), tonumber(ARGV[6])
local max_bytes, max_inputs, max_tokens = tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local provider_queue = ARGV[10]
local job = redis.call('HMGET', KEYS[6], 'token', 'requests', 'bytes', 'inputs', 'deadline')
local job_token, earliest = job[1], job[5] or '0'
local requests, bytes, inputs = tonumber(job[2] or 0), tonumber(job[3] or 0), tonumber(job[4] or 0)

if (job_token or '') ~= token then
  return { false, 0 }
end
local reserved = tonumber(redis.call('HGET', KEYS[9], provider_queue) or 0)
local moved, more_bytes, more_inputs, more_tokens = 0, 0, 0, 0

local function fits(b, i, t)
  local is_first = requests + moved == 0
  return (is_first or (bytes + more_bytes + b <= max_bytes
      and inputs + more_inputs + i <= max_inputs))
    and (reserved + more_tokens == 0 or reserved + more_tokens + t <= max_tokens)
end

-- Limited by the job's size, so that a call repeated after a lost answer moves no more requests.
local limit = math.min(max_scanned, max_requests - requests)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'LIMIT', 0, limit)) do
  local b, i, t, deadline = size_of(id)
  if tonumber(deadline) == 0 or tonumber(deadline) > tonumber(now) then
    if not fits(b, i, t) then
      break
    end
    moved = moved + 1
    more_bytes, more_inputs, more_tokens = more_bytes + b, more_inputs + i, more_tokens + t
    if tonumber(deadline) > 0
      and (tonumber(earliest) == 0 or tonumber(deadline) < tonumber(earliest)) then
      earliest = deadline
    end
    redis.call('ZREM', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
    redis.call('ZADD', KEYS[5], requests + moved, id)
  end
end
if moved == 0 then
  return { job_token, 0 }
end

add_to_totals(-1, more_bytes, more_inputs, more_tokens)
redis.call('HINCRBY', KEYS[9], provider_queue, more_tokens)
if not job_token then
  token = tostring(redis.call('INCR', KEYS[8]))
  redis.call('HSET', KEYS[6], 'state', 'PREPARED', 'token', token, 'lease_until', lease_until,
    'created_at', now, 'since', now, unpack(ARGV, 11))
  redis.call('ZADD', KEYS[7], now, intent)
end
redis.call('HSET', KEYS[6], 'requests', requests + moved, 'bytes', bytes + more_bytes,
  'inputs', inputs + more_inputs, 'deadline', earliest)
redis.call('HINCRBY', KEYS[6], 'tokens', more_tokens)
return { token, moved }
