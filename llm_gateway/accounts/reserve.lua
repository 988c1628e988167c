-- Holds on all accounts or on none; see account.py for what the numbers mean.
-- KEYS: the hold, the owner's holds, then the accounts.
-- ARGV: now, owner, hold id, calls, tokens, cost, names of the accounts; then for each account: window, slot of now,
-- oldest slot, concurrency_max, calls_max, tokens_max, cost_max (-1: none), three of the floor,
-- three of the opening, when to forget it.
-- Returns 0, or {position of the account without room, what it has}.
local WIDTH = 14
local KINDS = {c = 1, t = 2, m = 3}
local NAMES = {'c', 't', 'm'}

local function whole(number)
  return string.format('%.0f', number + 0) -- there is a negative zero, which is no integer
end

if redis.call('EXISTS', KEYS[1]) == 1 then
  return 0
end
local wanted = {tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])}
local missing = {}
for position = 1, #KEYS - 2 do
  local key, base = KEYS[position + 2], 7 + (position - 1) * WIDTH
  local function arg(place) return tonumber(ARGV[base + place]) end
  local content = redis.call('HGETALL', key)
  local taken, held, lost = {0, 0, 0}, {0, 0, 0}, {}
  for at = 1, #content, 2 do
    local field, value = content[at], tonumber(content[at + 1])
    local kind, slot = string.match(field, '^([ctm])(%d+)$')
    if kind then
      if tonumber(slot) < arg(3) then
        lost[#lost + 1] = field
      else
        taken[KINDS[kind]] = taken[KINDS[kind]] + value
      end
    elseif string.sub(field, 1, 1) == 'h' then
      held[KINDS[string.sub(field, 2)]] = value
    end
  end
  if #lost > 0 then
    redis.call('HDEL', key, unpack(lost))
  end
  local known = {}
  for place = 1, 3 do
    known[place] = math.max(taken[place], arg(7 + place))
    if #content == 0 then
      known[place] = math.max(known[place], arg(10 + place))
    end
  end
  local is_short = arg(4) >= 0 and held[1] >= arg(4)
  for place = 1, 3 do
    local limit = arg(4 + place)
    is_short = is_short or (limit >= 0 and known[place] + held[place] + wanted[place] > limit)
  end
  if is_short then
    return {position, content}
  end
  missing[position] = {known[1] - taken[1], known[2] - taken[2], known[3] - taken[3]}
end
for position = 1, #KEYS - 2 do
  local key, base = KEYS[position + 2], 7 + (position - 1) * WIDTH
  redis.call('HSETNX', key, 'window', ARGV[base + 1])
  for place, name in ipairs(NAMES) do
    if missing[position][place] > 0 then
      redis.call('HINCRBY', key, name .. ARGV[base + 2], whole(missing[position][place]))
    end
    redis.call('HINCRBY', key, 'h' .. name, ARGV[3 + place])
  end
  local forget = tonumber(ARGV[base + WIDTH])
  if forget > tonumber(redis.call('HGET', key, 'forget') or '0') then
    redis.call('HSET', key, 'forget', ARGV[base + WIDTH])
  end
  redis.call('PERSIST', key)
end
redis.call('HSET', KEYS[1], 'c', ARGV[4], 't', ARGV[5], 'm', ARGV[6], 'expired', '0',
  'owner', ARGV[2], 'accounts', ARGV[7])
redis.call('SADD', KEYS[2], ARGV[3])
return 0
