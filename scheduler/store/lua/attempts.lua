-- Reads the attempts of requests.
-- KEYS[...] counters: hash, request id -> count, of each kind of attempt
-- ARGV[...] ids: the requests'
-- Returns the requests that have attempts: for each its id, then its count of each kind.

local counts, tried = {}, {}

for k, counter in ipairs(KEYS) do
  counts[k] = redis.call('HMGET', counter, unpack(ARGV))
end
for i, id in ipairs(ARGV) do
  local own, is_tried = { id }, false
  for k in ipairs(KEYS) do
    is_tried = is_tried or counts[k][i]
    own[1 + k] = counts[k][i] or '0'
  end
  if is_tried then
    tried[#tried + 1] = own
  end
end
return tried
