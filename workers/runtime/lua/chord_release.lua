-- Gives up a worker's claim to publish a chord's body.
-- KEYS[1] claim: string, the token of the worker that publishes the body
-- ARGV[1] token: the worker's

if redis.call('GET', KEYS[1]) == ARGV[1] then
  redis.call('DEL', KEYS[1])
end
