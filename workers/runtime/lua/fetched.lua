-- The tasks whose messages workers have fetched and not acknowledged. It reads all of those
-- messages: for what is asked rarely.
--
-- KEYS[1]  hash  lease tag -> '[message, "", list it came from]'
--
-- Returns their ids.

local ids = {}
for _, entry in ipairs(redis.call('HVALS', KEYS[1])) do
  -- Not by cjson: a body can be large, and Celery puts the id here too.
  ids[#ids + 1] = string.match(entry, '"correlation_id": ?"([^"]+)"')
end
return ids
