-- Acknowledge messages: end their leases. Follows outcome.lua.
-- KEYS[1]    leases: hash, lease tag -> '[message, "", list it came from]'
-- KEYS[2]    renewals: zset, lease tag by the Unix seconds of its last renewal
-- KEYS[3]    leased tasks: zset, '<task id>\0<lease tag>', all of score 0
-- ARGV[1]    check: '1' to keep the leases of tasks without a stored outcome, else '0'
-- ARGV[...]  leases: two arguments for each, its tag and its task's id
-- Returns the tags of the leases that were kept.

local function has_outcome(task)
  return FINAL[stored_state('celery-task-meta-' .. task)]
end

local kept = {}
for i = 2, #ARGV, 2 do
  local tag, task = ARGV[i], ARGV[i + 1]
  if ARGV[1] == '1' and not has_outcome(task) then
    kept[#kept + 1] = tag
  else
    redis.call('HDEL', KEYS[1], tag)
    redis.call('ZREM', KEYS[2], tag)
    redis.call('ZREM', KEYS[3], task .. '\0' .. tag)
  end
end
return kept
