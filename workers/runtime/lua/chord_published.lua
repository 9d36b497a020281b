-- Remembers what was published of a chord only as long as Celery's mark that its body was sent.
-- Precedes Celery's script that removes a chord.
-- KEYS[1] claim: string, the token of the worker that publishes the body
-- KEYS[6] published: string, how many messages of the chord were pushed
-- ARGV[1] token: the worker's
-- ARGV[2] ttl: seconds

if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('EXPIRE', KEYS[6], ARGV[2])
end
