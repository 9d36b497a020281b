-- List the tasks whose messages are leased. Reads all of these messages, so call it rarely.
-- KEYS[1]  leases: hash, lease tag -> '[message, "", list it came from]'
-- Returns the tasks' ids.

local ids = {}
for _, entry in ipairs(redis.call('HVALS', KEYS[1])) do
  -- Without cjson, because a body can be large. Celery puts the task's id into this property too.
  ids[#ids + 1] = string.match(entry, '"correlation_id": ?"([^"]+)"')
end
return ids
