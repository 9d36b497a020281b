-- Cut a job, or put more into one that was just cut: move the oldest requests of a group into it, as
-- many as fit. Requests past their deadline stay behind. A request that is larger than a limit has a
-- job for itself. The tokens of the job are reserved in its provider's queue.
-- Returns the job's fencing token, false when there is no job, and how many requests it took.
--
-- KEYS[5] members   zset  the job's request ids by their line in the file, from 1
-- KEYS[6] job       hash  its fields
-- KEYS[7] jobs      zset  live jobs by the time when they are due
-- KEYS[8] fence     text  the last token given
-- KEYS[9] reserved  hash  queue -> tokens of the live jobs in it
-- ARGV    intent, its fencing token ('' to cut it), now, lease until, requests to look at, most
--         requests, bytes and inputs of the job, most tokens of the queue, queue, then field, value,
--         ...

local intent, token, now, lease_until = unpack(ARGV, 1, 4)
local look_at, most_requests, most_bytes, most_inputs, most_tokens = unpack(ARGV, 5, 9)
local queue = ARGV[10]
local job = redis.call('HMGET', KEYS[6], 'token', 'requests', 'bytes', 'inputs', 'deadline')

if (job[1] or '') ~= token then
  return { false, 0 }
end
local had, bytes, inputs = tonumber(job[2] or 0), tonumber(job[3] or 0), tonumber(job[4] or 0)
local earliest = job[5] or '0'
local reserved = tonumber(redis.call('HGET', KEYS[9], queue) or 0)
local taken, more_bytes, more_inputs, more_tokens = 0, 0, 0, 0

local function fits(b, i, t)
  local first = had + taken == 0
  return (first or (bytes + more_bytes + b <= tonumber(most_bytes)
      and inputs + more_inputs + i <= tonumber(most_inputs)))
    and (reserved + more_tokens == 0 or reserved + more_tokens + t <= tonumber(most_tokens))
end

-- Of the job, not of this step: a step that is repeated after its answer was lost takes no more.
local room = math.min(tonumber(look_at), tonumber(most_requests) - had)
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'LIMIT', 0, room)) do
  local b, i, t, d = size(id)
  if tonumber(d) == 0 or tonumber(d) > tonumber(now) then
    if not fits(b, i, t) then
      break
    end
    taken = taken + 1
    more_bytes, more_inputs, more_tokens = more_bytes + b, more_inputs + i, more_tokens + t
    if tonumber(d) > 0 and (tonumber(earliest) == 0 or tonumber(d) < tonumber(earliest)) then
      earliest = d
    end
    redis.call('ZREM', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
    redis.call('ZADD', KEYS[5], had + taken, id)
  end
end
if taken == 0 then
  return { job[1], 0 }
end

count(-1, more_bytes, more_inputs, more_tokens)
redis.call('HINCRBY', KEYS[9], queue, more_tokens)
if not job[1] then
  token = tostring(redis.call('INCR', KEYS[8]))
  redis.call('HSET', KEYS[6], 'state', 'PREPARED', 'token', token, 'lease_until', lease_until,
    'created_at', now, 'since', now, unpack(ARGV, 11))
  redis.call('ZADD', KEYS[7], now, intent)
end
redis.call('HSET', KEYS[6], 'requests', had + taken, 'bytes', bytes + more_bytes,
  'inputs', inputs + more_inputs, 'deadline', earliest)
redis.call('HINCRBY', KEYS[6], 'tokens', more_tokens)
return { token, taken }
