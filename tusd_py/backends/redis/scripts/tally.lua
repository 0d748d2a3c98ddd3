-- A part of scripts: bring the usage of an owner in step with a record, after a change or before its removal.
--
-- The record remembers in 'counted' what the usage holds of it, as "generation bytes open owner". So a record is never
-- counted twice, and what an earlier usage held, which was lost, is not taken out of a new one.
local function counted_of(record)
  return string.match(redis.call('HGET', record, 'counted') or '', '^(%x+) (%d+) (%d) (.*)$')
end

local function tally(record, usage, is_removed)
  local generation = string.match(redis.call('HGET', usage, '.') or '', '^%x+')
  if not generation then return end
  local fields = redis.call('HMGET', record, 'owner', 'status', 'length', 'offset', 'concatenation', 'uncounted')
  local owner, status, length, offset, kind, uncounted = unpack(fields, 1, 6)
  local bytes, open = 0, 0
  local counts = not is_removed and uncounted ~= '1'
  if counts and kind ~= 'final' and (status == 'active' or status == 'finishing') then open = 1 end
  local ended = status == 'terminated' or status == 'expired'
  if counts and not ended and (kind ~= 'final' or status == 'complete') then
    bytes = math.min(math.max(tonumber(length or offset) or 0, 0), 2 ^ 44)
  end
  owner = owner or ''
  local function add(name, amount)
    if amount ~= 0 and redis.call('HINCRBY', usage, name, string.format('%.0f', amount)) == 0 then
      redis.call('HDEL', usage, name)
    end
  end
  local was_generation, was_bytes, was_open, was_owner = counted_of(record)
  if was_generation ~= generation then
    was_bytes, was_open, was_owner = 0, 0, owner
  end
  if was_owner == owner then
    add('b ' .. owner, bytes - was_bytes)
    add('n ' .. owner, open - was_open)
  else
    add('b ' .. was_owner, -was_bytes)
    add('n ' .. was_owner, -was_open)
    add('b ' .. owner, bytes)
    add('n ' .. owner, open)
  end
  redis.call('HSET', record, 'counted', string.format('%s %.0f %d ', generation, bytes, open) .. owner)
end
