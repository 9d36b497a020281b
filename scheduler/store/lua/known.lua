-- Tells which requests are on the lane or have left it.
-- KEYS[1]  sizes: hash, request id -> its size, of every request on the lane
-- KEYS[...] outcomes: string, of each request; it exists once the request's completion began
-- ARGV[...] ids: the requests'
-- Returns the ids of these requests.

local known = {}

for i, id in ipairs(ARGV) do
  if redis.call('HEXISTS', KEYS[1], id) == 1 or redis.call('EXISTS', KEYS[1 + i]) == 1 then
    known[#known + 1] = id
  end
end
return known
