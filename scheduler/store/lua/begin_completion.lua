-- Claims the completion of requests with their batch's answers or with errors.
-- KEYS[1]  withdrawals: hash, request id -> decision
-- KEYS[...] outcomes: string, of each request; it exists once the request's completion began
-- ARGV[1]  guard: seconds for which nobody but the caller may complete the requests
-- ARGV[...] ids: the requests'
-- Returns the requests that the caller must not complete: two texts for each, its id, and 'theirs' when
-- it is being completed or withdrawn, 'done' when it has left the lane.

local guard, others = ARGV[1], {}

local function leave_out(id, owner)
  others[#others + 1], others[#others + 2] = id, owner
end

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('HDEL', KEYS[1], '')
local outcomes = redis.call('MGET', unpack(KEYS, 2))
local decisions = redis.call('HMGET', KEYS[1], unpack(ARGV, 2))
for i, outcome in ipairs(outcomes) do
  local id = ARGV[1 + i]
  if outcome then
    leave_out(id, outcome == 'begun' and 'theirs' or 'done')
  elseif decisions[i] then
    leave_out(id, 'theirs')
  else
    redis.call('SET', KEYS[1 + i], 'begun', 'EX', guard)
  end
end
return others
