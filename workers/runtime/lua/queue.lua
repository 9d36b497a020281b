-- Functions that the scripts share which take messages off a queue or put them back.
-- Follows turns.lua.

local HEADER, VALUE = '"fleet_tenant"', '^%s*:%s*"([^"\\%c]*)"'
local MAX_TENANT_BYTES = 4096 -- a longer tenant is an error and counts as none

-- The tenant of a message, which may be any text. The header is found wherever it stands in JSON:
-- inside a string its last quote would be escaped, or no colon would follow.
local function tenant_of(message)
  local last = 0
  repeat
    last = select(2, string.find(message, HEADER, last + 1, true))
    local tenant = last and string.match(message, VALUE, last + 1)
    if tenant and #tenant <= MAX_TENANT_BYTES then
      return tenant
    end
  until not last
  return ''
end

-- Put a message before the tenant's others. A tenant that had none gets the next turn.
local function put_back(list, message)
  local tenant = tenant_of(message)
  if redis.call('RPUSH', tenants_list(list, tenant), message) == 1 then
    redis.call('LPUSH', turns_of(list), tenant)
  end
end
