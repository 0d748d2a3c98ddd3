-- Find the oldest event of an upload that waits for a sink.
--
-- KEYS: events of the upload.
-- ARGV: name of the sink.
-- Returns {id, state of the delivery, value of the event}; {} if none waits.
local first, first_id, first_state
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local id, sink = string.match(field, '^d (%S+) (.*)$')
  if sink == ARGV[1] then
    local state = redis.call('HGET', KEYS[1], field)
    local number, dead = string.match(state, '^(%d+) %S+ %S+ (%d)')
    number = tonumber(number)
    local is_older = dead == '0' and (not first or number < first)
    if is_older and redis.call('HEXISTS', KEYS[1], 'e ' .. id) == 1 then
      first, first_id, first_state = number, id, state
    end
  end
end
if not first then return {} end
return {first_id, first_state, redis.call('HGET', KEYS[1], 'e ' .. first_id)}
