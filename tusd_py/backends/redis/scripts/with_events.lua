-- Make a change of a record, and store the events that tell of it in the same step.
--
-- KEYS: those of the change, then the events of the upload; then, unless they are in another hash slot, the names of the
-- sinks, and of each sink its deliveries by time and its deliveries.
-- ARGV: a JSON object, see `OutboxWriter`; the values of the events; then the arguments of the change.
-- Returns the result of the change: 1 if it was made now, and the events with it.
local function change(KEYS, ARGV)
--CHANGE
end

local given = cjson.decode(ARGV[1])
local first = given.keys + 1
local change_keys = {}  -- of a final upload with more partial ones than `unpack` takes
for position = 1, given.keys do change_keys[position] = KEYS[position] end
local result = change(change_keys, {unpack(ARGV, #given.events + 2)})
if result ~= 1 then return result end
for position, event in ipairs(given.events) do
  local number = redis.call('HINCRBY', KEYS[first], 'number', 1)
  redis.call('HSET', KEYS[first], 'e ' .. event.id, ARGV[position + 1])
  for _, sink in ipairs(event.sinks) do
    redis.call('HSET', KEYS[first], 'd ' .. event.id .. ' ' .. given.sinks[sink], number .. ' 0 0 0 ')
    local index = first + 2 * sink
    if KEYS[index] then
      local member = event.id .. ' ' .. given.upload
      redis.call('SADD', KEYS[first + 1], given.sinks[sink])
      redis.call('ZADD', KEYS[index], given.score, member)
      redis.call('ZADD', KEYS[index + 1], 0, member)
    end
  end
end
return result
