-- Publish a worker's catalogue, unless the catalogue of a worker that started later is published.
-- KEYS[1]  catalogue: string, JSON
-- KEYS[2]  version: string, when the worker of this catalogue started: server time, microseconds
-- ARGV[1]  version: of the caller
-- ARGV[2]  catalogue: string, of the caller; '' only asks
-- Returns 1 if the caller's catalogue is published by this call, or is missing and was not given;
-- 0 if nothing has changed. A catalogue without a version was published by hand and stays.

local version = redis.call('GET', KEYS[2])
local is_published = redis.call('EXISTS', KEYS[1]) == 1
if is_published and (not version or tonumber(version) >= tonumber(ARGV[1])) then
  return 0
end
if ARGV[2] ~= '' then
  -- A server out of memory allows this write, and then also those that follow it in the script.
  redis.call('DEL', KEYS[1])
  redis.call('SET', KEYS[1], ARGV[2])
  redis.call('SET', KEYS[2], ARGV[1])
end
return 1
