-- Promise that no worker starts a task from now on, and store its outcome if it only waits.
-- Follows outcome.lua.
-- KEYS[1]  result: string, the result, as Celery stores it
-- KEYS[2]  channel: of the same name, where subscribers wait for the result
-- KEYS[3]  mark: string, exists while messages of the task are dropped; 'waiting', or 'completed'
--            once the task's callbacks know
-- KEYS[4]  leased tasks: zset, '<task id>\0<lease tag>', all of score 0
-- KEYS[5]  payer: string, the tenant with a reservation for the task
-- ARGV[1]  task: string, its id
-- ARGV[2]  outcome: string, the encoded result REVOKED
-- ARGV[3]  result TTL: seconds for which it is stored
-- ARGV[4]  mark TTL: seconds
-- ARGV[5]  parked: '1' if the batch lane may have the task, '0' if it has left that lane
-- Returns {status, is new, payer}. Status: 'finished', it has an outcome already, and nothing has
-- changed; 'parked', the batch lane must cancel it; 'leased', the worker that has its message must
-- stop it, or another worker drops the message; 'cancelled', the outcome is stored. Is new: 1 if
-- this call made the mark. Payer: '' for none; its reservation must be returned if cancelled.

local state, stored = stored_state(KEYS[1])
if stored ~= '' and (not state or FINAL[state]) then
  return { 'finished', 0, '' }
end

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('ZREM', KEYS[4], '')
local is_new = redis.call('SET', KEYS[3], 'waiting', 'EX', ARGV[4], 'NX') and 1 or 0
if state == 'PARKED' and ARGV[5] == '1' then
  return { 'parked', is_new, '' }
end
local first, last = '[' .. ARGV[1] .. '\0', '(' .. ARGV[1] .. '\1'
if #redis.call('ZRANGEBYLEX', KEYS[4], first, last, 'LIMIT', 0, 1) > 0 then
  return { 'leased', is_new, '' }
end
redis.call('SET', KEYS[1], ARGV[2], 'EX', ARGV[3])
redis.call('PUBLISH', KEYS[2], ARGV[2])
redis.call('ZREM', 'fleet:open', ARGV[1]) -- submitted tasks without an outcome
return { 'cancelled', is_new, redis.call('GET', KEYS[5]) or '' }
