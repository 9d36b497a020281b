-- Part of scripts that tell the receivers of webhooks about an event.

local MAX_WEBHOOKS = 100000

-- Enqueue deliveries that are not enqueued yet; return how many the outbox has no room for.
-- webhooks_key and due_key: see claim_webhook.lua. entries: id, JSON, ... of each delivery.
local function enqueue(webhooks_key, due_key, entries)
  local now, dropped = redis.call('TIME')[1], 0
  for i = 1, #entries, 2 do
    if redis.call('HLEN', webhooks_key) >= MAX_WEBHOOKS then
      dropped = dropped + 1
    elseif redis.call('HSETNX', webhooks_key, entries[i], now .. ' ' .. entries[i + 1]) == 1 then
      redis.call('ZADD', due_key, now, entries[i])
    end
  end
  return dropped
end
