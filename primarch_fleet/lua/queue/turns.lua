-- Names of the lists of a queue whose messages wait by tenant. Scripts on queues start with it.
--
-- Producers push to one list for each queue and priority, which kombu names. Workers sort these
-- messages into lists of the tenants, who take turns:
--
--   turns: list, the tenants that have waiting messages, each once; the left one is next
--   tenant's list: list, the tenant's messages, in their order; the right one is next
--
-- These lists are not in KEYS, because only the messages tell which tenants there are. All keys of a
-- queue are on one server. A tenant is the text of a message's header as its JSON contains it;
-- messages without the header belong to the tenant ''.
--
-- For each sorted message there is a placeholder in the list that has the queue's name, so that the
-- lengths of kombu's lists are true; see placeholders.lua.

local SEPARATOR = '\6\22' -- kombu's, between a queue and a priority

local STEPS, NORMAL = { 9, 6, 3 }, 3 -- the priorities that have lists of their own; the normal one

-- A message that stock Celery workers drop as an unknown one, as short as they can read.
local PLACEHOLDER = '{"body":"","properties":{"delivery_tag":"placeholder",'
  .. '"delivery_info":{"exchange":"","routing_key":""}}}'

local function turns_of(list)
  return list .. SEPARATOR .. 'turns'
end

local function tenants_list(list, tenant)
  return turns_of(list) .. SEPARATOR .. tenant
end
