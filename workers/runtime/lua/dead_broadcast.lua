-- Keep a broadcast message as a dead letter, once although each worker receives it. Follows
-- dead_letters.lua.
-- KEYS[1]  letters: list of JSON, newest first
-- KEYS[2]  counts: hash, as dead_letters.lua says
-- KEYS[3]  seen: string, exists while the same message is a dead letter already
-- ARGV[1]  letter: string, a JSON object; its `at` is added, the Unix seconds of now
-- ARGV[2]  counted as: string, the field of KEYS[2]
-- ARGV[3]  max letters: number of letters to keep
-- ARGV[4]  max bytes: number of bytes to keep; the newest letter is kept whatever its size
-- ARGV[5]  TTL: seconds that KEYS[3] exists
-- Returns 1, or 0 if the message is a dead letter already.

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('HDEL', KEYS[2], '')
if not redis.call('SET', KEYS[3], '', 'NX', 'EX', ARGV[5]) then
  return 0
end
keep_letter(KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]))
return 1
