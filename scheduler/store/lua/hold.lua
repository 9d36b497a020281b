-- Take a job's lease, keep it, or give it back (until 0).
-- Returns the token under which the caller holds it, or false when another does or it is done.
--
-- KEYS[1] job    hash  its fields
-- KEYS[2] fence  text  the last token given
-- ARGV    token, empty to take the lease; now; until

local state, held, lease_until =
  unpack(redis.call('HMGET', KEYS[1], 'state', 'token', 'lease_until'))
local token = ARGV[1]

if not state or state == 'DONE' then
  return false
end
if token == '' then
  if tonumber(lease_until) > tonumber(ARGV[2]) then
    return false
  end
  token = tostring(redis.call('INCR', KEYS[2]))
elseif token ~= held then
  return false
end
redis.call('HSET', KEYS[1], 'token', token, 'lease_until', ARGV[3])
return token
