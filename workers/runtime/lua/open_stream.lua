-- Open a new run of a task's stream, and remove the entries of earlier runs.
-- primarch_fleet/streaming.py describes the entries.
-- KEYS[1]  stream: stream, the task's
-- ARGV[1]  TTL: seconds for which the stream is kept after the last write
-- Returns the number of the run, as a string: the server's time in milliseconds, or more if that is
-- not later than the previous run.

local time = redis.call('TIME')
local run = time[1] * 1000 + math.floor(time[2] / 1000)
local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if last then
  run = math.max(run, tonumber(string.match(last[1], '^%d+')) + 1)
end
local number = string.format('%.0f', run)
redis.call('XADD', KEYS[1], number .. '-0', 'opened', '')
redis.call('XTRIM', KEYS[1], 'MINID', number .. '-0')
redis.call('EXPIRE', KEYS[1], ARGV[1])
return number
