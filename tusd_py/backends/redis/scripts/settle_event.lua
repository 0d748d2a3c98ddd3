-- Change or remove the delivery of an event to a sink.
--
-- KEYS: events of the upload ('event'), then of the sink its deliveries by time, its deliveries, its dead letters
-- ('index'); in a cluster these are in another hash slot, and the script runs for each part.
-- ARGV: part ('both', 'event' or 'index'), action, event id, upload id, sink, attempts, time of the next attempt, score
-- of a delivery that is due now, error; for 'index', then id and score of the next delivery of the upload.
-- Actions: remove; postpone; bury, which makes a dead letter; retry, which makes the delivery due now.
-- Returns {1 or 0: whether there was such a delivery, id and score of the upload's next delivery after remove and bury}.
local part, action, id, upload, sink, attempts, next_at, due, reason = unpack(ARGV)
local found, next_id, next_score = 1, ARGV[10] or '', ARGV[11] or ''

local function settle_event(key)
  local field = 'd ' .. id .. ' ' .. sink
  local state = redis.call('HGET', key, field)
  if not state then return 0 end
  local number, before, old_reason = string.match(state, '^(%d+) (%S+) %S+ %d (.*)$')
  if action == 'retry' then attempts, reason = before, old_reason end
  local dead = action == 'bury' and 1 or 0
  if action == 'remove' then
    redis.call('HDEL', key, field)
  else
    redis.call('HSET', key, field, table.concat({number, attempts, next_at, dead, reason}, ' '))
  end
  if action == 'postpone' or action == 'retry' then return 1 end
  local deliveries, of_event, first = 0, 0, math.huge
  for _, name in ipairs(redis.call('HKEYS', key)) do
    local other_id, other_sink = string.match(name, '^d (%S+) (.*)$')
    if other_id then deliveries = deliveries + 1 end
    if other_id == id then of_event = of_event + 1 end
    if other_sink == sink then
      local other, other_at, is_dead = string.match(redis.call('HGET', key, name), '^(%d+) %S+ (%S+) (%d)')
      if is_dead == '0' and tonumber(other) < first then
        first, next_id, next_score = tonumber(other), other_id, other_at == '0' and due or other_at
      end
    end
  end
  if of_event == 0 then redis.call('HDEL', key, 'e ' .. id) end
  if deliveries == 0 then redis.call('DEL', key) end
  return 1
end

local function settle_index(schedule, waiting, dead)
  local member = id .. ' ' .. upload
  if found == 0 or action == 'remove' or action == 'bury' then
    redis.call('ZREM', schedule, member)
    redis.call('ZREM', waiting, member)
  else
    redis.call('ZADD', schedule, action == 'retry' and due or next_at, member)
    redis.call('ZADD', waiting, 0, member)
  end
  if found == 1 and action == 'bury' then
    redis.call('ZADD', dead, 0, member)
  else
    redis.call('ZREM', dead, member)
  end
  if next_id ~= '' then redis.call('ZADD', schedule, 'XX', next_score, next_id .. ' ' .. upload) end
end

if part ~= 'index' then found = settle_event(KEYS[1]) end
if part == 'both' then settle_index(KEYS[2], KEYS[3], KEYS[4]) end
if part == 'index' then settle_index(KEYS[1], KEYS[2], KEYS[3]) end
return {found, next_id, next_score}
