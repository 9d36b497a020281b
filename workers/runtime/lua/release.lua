-- End a lease, and put its message back in its queue. Follows queue.lua and lease.lua.
-- KEYS[1]  leases: hash, lease tag -> '[message, "", list it came from]'
-- KEYS[2]  renewals: zset, lease tag by the Unix seconds of its last renewal
-- KEYS[3]  queue: list, where the message goes
-- ARGV[1]  tag: string, the lease
-- ARGV[2]  message: string, the text to put there
-- ARGV[3]  place: 'next' of its tenant, or 'last' in the queue
-- ARGV[4]  idle: seconds, only if the lease was not renewed for so long; 0 for any lease
-- Returns 1, or 0 if the lease has ended or was renewed; nothing has changed then.

if not end_lease(KEYS[1], KEYS[2], ARGV[1], ARGV[4]) then
  return 0
end
if ARGV[3] == 'next' then
  put_back(KEYS[3], ARGV[2])
else
  redis.call('LPUSH', KEYS[3], ARGV[2])
end
return 1
