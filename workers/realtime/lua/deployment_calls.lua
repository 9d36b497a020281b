-- Add calls to what all workers measured of the deployments, and return the sums of the window.
-- KEYS[1]  calls: hash, '<bucket>:<deployment>' -> '<calls> <failures> <milliseconds>'
-- ARGV[1]  bucket: seconds that a bucket lasts
-- ARGV[2]  window: buckets that count, the present one included
-- ARGV[3-]  deployments: of each its id, calls, failures, milliseconds of the successful calls, repeated
-- Returns a flat list of: deployment id, calls, failures, milliseconds.

local bucket = math.floor(redis.call('TIME')[1] / ARGV[1])

local function parse(text)
  local calls, failures, milliseconds = string.match(text, '^(%d+) (%d+) (%d+)$')
  return {tonumber(calls), tonumber(failures), tonumber(milliseconds)}
end

local function add(sum, more)
  for i = 1, 3 do
    sum[i] = sum[i] + more[i]
  end
  return sum
end

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('HDEL', KEYS[1], '')
for i = 3, #ARGV, 4 do
  local field = bucket .. ':' .. ARGV[i]
  local sum = parse(redis.call('HGET', KEYS[1], field) or '0 0 0')
  sum = add(sum, {tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])})
  redis.call('HSET', KEYS[1], field, string.format('%.0f %.0f %.0f', sum[1], sum[2], sum[3]))
end

local sums = {}
local entries = redis.call('HGETALL', KEYS[1])
for i = 1, #entries, 2 do
  local at, deployment = string.match(entries[i], '^(%d+):(.*)$')
  if tonumber(at) <= bucket - ARGV[2] then
    redis.call('HDEL', KEYS[1], entries[i])
  else
    sums[deployment] = add(sums[deployment] or {0, 0, 0}, parse(entries[i + 1]))
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[1] * ARGV[2])

local reply = {}
for deployment, sum in pairs(sums) do
  reply[#reply + 1] = deployment
  for i = 1, 3 do
    reply[#reply + 1] = sum[i]
  end
end
return reply
