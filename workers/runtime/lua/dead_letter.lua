-- End a lease and keep its message as a dead letter; the oldest ones are dropped if there are too
-- many. Follows lease.lua and dead_letters.lua.
-- KEYS[1]  letters: list of JSON, newest first
-- KEYS[2]  counts: hash, 'bytes' of the list; ever since: 'dropped' for want of room, and the
--          dead letters of each 'KIND:QUEUE'
-- KEYS[3]  leases: hash, lease tag -> '[message, "", list it came from]'
-- KEYS[4]  renewals: zset, lease tag by the Unix seconds of its last renewal
-- ARGV[1]  letter: string, a JSON object; its `at` is added, the Unix seconds of now
-- ARGV[2]  counted as: string, the field of KEYS[2]
-- ARGV[3]  max letters: number of letters to keep
-- ARGV[4]  max bytes: number of bytes to keep; the newest letter is kept whatever its size
-- ARGV[5]  tag: string, the lease
-- ARGV[6]  idle: seconds, only if the lease was not renewed for so long; 0 for any lease
-- Returns 1, or 0 if the lease has ended or was renewed; nothing has changed then.

if not end_lease(KEYS[3], KEYS[4], ARGV[5], ARGV[6]) then
  return 0
end
keep_letter(KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]))
return 1
