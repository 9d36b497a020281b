-- Set fields of a hash.
-- KEYS[1]    hash: hash
-- ARGV[...]  fields: a field, its value, the next field...
-- Returns nothing.

-- A server out of memory allows this write, and then also those that follow it in the script.
redis.call('HDEL', KEYS[1], '')
redis.call('HSET', KEYS[1], unpack(ARGV))
