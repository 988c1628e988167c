-- Ends a hold; see account.py for what the numbers mean.
-- KEYS: the hold, the owner's holds, then the accounts.
-- ARGV: now, hold id, parts of a window, then calls, tokens and cost that were taken; without
-- these the owner is dead, what was held counts as taken, and the hold is kept for as many
-- milliseconds as the last one says.
-- Returns 1 where something was done.
local NAMES = {'c', 't', 'm'}

local function whole(number)
  return string.format('%.0f', number + 0) -- there is a negative zero, which is no integer
end

local hold = redis.call('HMGET', KEYS[1], 'c', 't', 'm', 'expired')
redis.call('SREM', KEYS[2], ARGV[2])
if not hold[1] then
  return 0
end
local is_dead = #ARGV == 4
local now, expired = tonumber(ARGV[1]), tonumber(hold[4])
if is_dead and expired > 0 then
  return 0
end
for at = 3, #KEYS do
  local key = KEYS[at]
  local window, forget = unpack(redis.call('HMGET', key, 'window', 'forget'))
  if window then
    local slot = 0
    if tonumber(window) > 0 then
      local part = math.max(1, math.ceil(tonumber(window) / tonumber(ARGV[3])))
      slot = math.floor((expired > 0 and expired or now) / part)
    end
    for place, name in ipairs(NAMES) do
      local held = tonumber(hold[place])
      local taken = is_dead and held or tonumber(ARGV[3 + place])
      if expired > 0 then
        taken = taken - held
      else
        redis.call('HINCRBY', key, 'h' .. name, whole(-held))
      end
      if taken ~= 0 then
        redis.call('HINCRBY', key, name .. whole(slot), whole(taken))
      end
    end
    local is_free = tonumber(redis.call('HGET', key, 'hc')) == 0
    if is_free and forget and tonumber(forget) > 0 then
      redis.call('PEXPIRE', key, whole(math.max(1, math.ceil((tonumber(forget) - now) / 1000))))
    end
  end
end
if is_dead then
  redis.call('HSET', KEYS[1], 'expired', ARGV[1])
  redis.call('PEXPIRE', KEYS[1], ARGV[4])
else
  redis.call('DEL', KEYS[1])
end
return 1
