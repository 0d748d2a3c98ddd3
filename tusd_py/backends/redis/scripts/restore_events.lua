-- Add deliveries to the indexes of a sink that they lack.
--
-- KEYS: names of the sinks; of the sink, its deliveries by time, its deliveries, its dead letters.
-- ARGV: name of the sink, then member and score of each delivery (score '': a dead letter).
-- Returns the number of deliveries that were missing.
redis.call('SADD', KEYS[1], ARGV[1])
local missing = 0
for position = 2, #ARGV, 2 do
  local member, score = ARGV[position], ARGV[position + 1]
  local added
  if score == '' then
    added = redis.call('ZADD', KEYS[4], 0, member)
  else
    added = math.max(redis.call('ZADD', KEYS[2], 'NX', score, member), redis.call('ZADD', KEYS[3], 0, member))
  end
  missing = missing + added
end
return missing
