-- Take the next messages and lease them in one step, so that a killed worker loses none.
-- Keys and arguments: take.lua, which this follows; then:
-- KEYS[3...]  lists: list, the lists that producers push to, most urgent first; the right end is
--               the oldest message
-- ARGV[...]   leased: '1' or '0' for each list: lease its messages, one of each tenant in turn; or
--               its consumer does not acknowledge
-- ARGV[...]   allowances: JSON, as within_rates says
-- Returns `done()` as take.lua says; empty if there is none for this worker.

local MAX_LIMITED = 64 -- messages of a list that are passed over at most

-- Take messages in the order of the list, without a lease.
local function take_unleased(list)
  local message = wanted() > 0 and redis.call('LINDEX', list, -1)
  while message do
    redis.call('LTRIM', list, 0, -2) -- RPOP would count as another consumer's: placeholders.lua
    add_to_reply(list, '', message, '')
    message = wanted() > 0 and redis.call('LINDEX', list, -1)
  end
end

local offer = within_rates(ARGV[own_args + #KEYS - 1], take)
for n = 3, #KEYS do
  if ARGV[own_args + n - 2] == '0' then
    take_unleased(KEYS[n])
  else
    offer_in_turn(KEYS[n], MAX_LIMITED, offer)
  end
end
return done()
