-- Take the next messages and lease them in one step, so that a worker killed at any point loses none.
--
-- KEYS[1]   hash    lease tag -> '[message, "", list it came from]'
-- KEYS[2]   zset    lease tag, by the server's time in seconds when the lease was last renewed
-- KEYS[3..] lists   the waiting messages, most urgent list first; the next one is at the right end
-- ARGV      strings   lease tags, unique to this fetch: one for each message it may take; then
--           '1'|'0'   for each list: lease what comes from it, or its consumer does not acknowledge
--
-- Returns {list, message, list, message, ...}, the first message under the first tag and so on;
-- empty when every list is.

local tags = #ARGV - (#KEYS - 2)
local now = redis.call('TIME')[1]
local taken = {}
local i = 3
while i <= #KEYS and #taken < 2 * tags do
  local message = redis.call('RPOP', KEYS[i])
  if message then
    local tag = ARGV[#taken / 2 + 1]
    if ARGV[tags + i - 2] == '1' then
      -- The text of the message is kept as it is: cjson would change numbers and empty arrays.
      local entry = '[' .. message .. ',"",' .. cjson.encode(KEYS[i]) .. ']'
      redis.call('HSET', KEYS[1], tag, entry)
      redis.call('ZADD', KEYS[2], now, tag)
    end
    taken[#taken + 1] = KEYS[i]
    taken[#taken + 1] = message
  else
    i = i + 1
  end
end
return taken
