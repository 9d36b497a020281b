-- How a task's state is stored. Scripts that store one start with it. Follows outcome.lua.

-- zset: ids of tasks that were submitted and have no outcome yet
local OPEN = 'fleet:open'

-- Store the state of `task` under a key and publish it to the channel of the same name, unless an
-- outcome is stored already. `text` is the encoded result, and `ttl` the seconds for which it is
-- stored, 0 for no limit. `mark` exists while messages of the task are dropped, and `mark_ttl` is the
-- seconds for which it is still needed, empty if messages may still wait. Returns 1; 0 if an outcome is
-- stored, -1 if a value is stored that is not a result in JSON; nothing has changed then.
local function store_state(task, key, text, ttl, mark, mark_ttl)
  local state, stored = stored_state(key)
  if stored ~= '' and not state then
    return -1
  elseif FINAL[state] then
    return 0
  end
  -- A server out of memory allows this write, and then also those that follow it in the script.
  redis.call('DEL', key)
  if tonumber(ttl) > 0 then
    redis.call('SET', key, text, 'EX', ttl)
  else
    redis.call('SET', key, text)
  end
  redis.call('PUBLISH', key, text)
  if FINAL[state_in(text)] then
    redis.call('ZREM', OPEN, task)
  end
  if mark_ttl ~= '' then
    redis.call('EXPIRE', mark, mark_ttl)
  end
  return 1
end
