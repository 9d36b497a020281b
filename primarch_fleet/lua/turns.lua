-- What the scripts of a queue begin with: its messages wait by tenant, and the tenants take turns.
--
-- Producers push to one list a queue and priority, as kombu names it. Workers sort what has come
-- from there; these are named after the list, by the functions below:
--
--   turns      list   the tenants of which something waits, each once; the next is at the left end
--   a tenant's list   its messages, in their order; the next is at the right end
--
-- They are not declared in KEYS, since only the messages say which tenants there are: all keys of a
-- queue lie on one server. A tenant is the text of a message's header as it stands in its JSON;
-- messages without the header are of the tenant ''.

local SEPARATOR = '\6\22' -- kombu's, between a queue and a priority

local function turns_of(list)
  return list .. SEPARATOR .. 'turns'
end

local function tenants_list(list, tenant)
  return turns_of(list) .. SEPARATOR .. tenant
end
