-- The list of dead letters. Scripts that change it start with it.
--
-- list of the dead letters: JSON, newest first
-- counts: hash, 'bytes' of the list; ever since: 'dropped' for want of room, and a number for each
--         'KIND:QUEUE'

-- Add a dead letter with the time of now, count it, and drop the oldest ones above the limits.
local function keep_letter(letters, counts, letter, counted_as, max_letters, max_bytes)
  local time = redis.call('TIME')
  local text = string.format('{"at": %d.%06d, ', time[1], time[2]) .. string.sub(letter, 2)
  if redis.call('EXISTS', letters) == 0 then
    redis.call('HDEL', counts, 'bytes') -- an operator has deleted the list
  end
  redis.call('HINCRBY', counts, counted_as, 1)
  local length = redis.call('LPUSH', letters, text)
  local bytes = redis.call('HINCRBY', counts, 'bytes', #text)
  while length > 1 and (length > max_letters or bytes > max_bytes) do
    bytes = redis.call('HINCRBY', counts, 'bytes', -#redis.call('RPOP', letters))
    redis.call('HINCRBY', counts, 'dropped', 1)
    length = length - 1
  end
end

-- Remove a dead letter; returns false if it is not there.
local function remove_letter(letters, counts, letter)
  if redis.call('LREM', letters, 1, letter) == 0 then
    return false
  end
  redis.call('HINCRBY', counts, 'bytes', -#letter)
  return true
end
