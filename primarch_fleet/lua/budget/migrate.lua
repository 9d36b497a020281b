-- Move a tenant's spending and reservations from micro-dollars to nano-dollars. Follows ledger.lua.
-- KEYS[6]  old ledger: hash as KEYS[1], in micro-dollars; deleted
-- KEYS[7]  old reservations: hash as KEYS[2], in micro-dollars; deleted
-- ARGV[2]  retention: seconds for which an inactive tenant is kept
-- Amounts are text with three zeros appended, so they are exact.

local function each_pair(key, visit)
  local pairs_of_key = redis.call('HGETALL', key)
  for i = 1, #pairs_of_key, 2 do
    visit(pairs_of_key[i], pairs_of_key[i + 1])
  end
  redis.call('DEL', key)
end

each_pair(KEYS[6], function(field, micros)
  if micros ~= '0' then
    redis.call('HINCRBY', KEYS[1], field, micros .. '000')
  end
end)
each_pair(KEYS[7], function(id, reservation)
  local micros, day = reservation:match('^(%d+) (.+)$')
  local nanos = micros == '0' and '0' or micros .. '000'
  if redis.call('HSETNX', KEYS[2], id, nanos .. ' ' .. day) == 0 then
    add(day, 'reserved', 0 - tonumber(nanos)) -- it was reserved again in nano-dollars
  end
end)
redis.call('EXPIRE', KEYS[1], ARGV[2])
redis.call('EXPIRE', KEYS[2], ARGV[2])
