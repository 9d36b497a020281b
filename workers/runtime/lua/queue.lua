-- What the scripts begin with, behind turns.lua, that put messages on a queue or take them off.

local HEADER, VALUE = '"fleet_tenant"', '^%s*:%s*"([^"\\%c]*)"'
local LONGEST = 4096 -- bytes of a tenant: a longer one is a mistake

-- The tenant of a message, which may be any text. In JSON, that of our header is found wherever it
-- stands: in a string its last quote would be escaped, or no colon would follow.
local function tenant_of(message)
  local last = 0
  repeat
    last = select(2, string.find(message, HEADER, last + 1, true))
    local tenant = last and string.match(message, VALUE, last + 1)
    if tenant and #tenant <= LONGEST then
      return tenant
    end
  until not last
  return ''
end

-- Put a message before its tenant's others; a tenant that had none is the next of all.
local function put_back(list, message)
  local tenant = tenant_of(message)
  if redis.call('RPUSH', tenants_list(list, tenant), message) == 1 then
    redis.call('LPUSH', turns_of(list), tenant)
  end
end
