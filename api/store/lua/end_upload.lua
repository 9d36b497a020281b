-- Make an uploaded file visible to its tenant.
-- KEYS[1]  file, KEYS[2] parts, KEYS[3] files, KEYS[4] expiry: see publish_file.lua
-- ARGV[1]  id: the file's
-- ARGV[2]  TTL: seconds for which the file is kept
-- ARGV[3]  index TTL: seconds for which the tenant's list is kept at least
-- ARGV[4] and on: field, value, ... of the file
-- Returns 1, or 0 if its parts have expired.

local is_there = publish(KEYS[1], KEYS[2], KEYS[3], KEYS[4], ARGV[1], tonumber(ARGV[2]), ARGV[3],
  { unpack(ARGV, 4) })
return is_there and 1 or 0
