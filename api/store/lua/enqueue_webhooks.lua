-- Enqueue deliveries of webhooks.
-- KEYS[1]  webhooks, KEYS[2] due: see claim_webhook.lua
-- ARGV     id, JSON, ... of each delivery
-- Returns how many of them the outbox has no room for.

return enqueue(KEYS[1], KEYS[2], ARGV)
