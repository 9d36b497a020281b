-- Push messages to the lists of queues, all or none.
-- Returns nothing, or the percentage of its memory that the server uses: then nothing has changed.
--
-- KEYS     lists     of queues, one for each message
-- ARGV[1]  share     of the server's memory above which nothing is pushed; empty for none
-- ARGV     messages  from 2 on

local percent = ARGV[1] ~= '' and too_full(tonumber(ARGV[1]))
if percent then
  return percent
end
push(#KEYS)
