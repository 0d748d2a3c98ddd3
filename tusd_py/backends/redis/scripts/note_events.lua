-- Add deliveries to the indexes of the outbox.
--
-- KEYS: names of the sinks, then of each sink its deliveries by time and its deliveries.
-- ARGV: a JSON object: sinks (names), score, entries (member, and the positions of its sinks, each).
local given = cjson.decode(ARGV[1])
for _, sink in ipairs(given.sinks) do redis.call('SADD', KEYS[1], sink) end
for _, entry in ipairs(given.entries) do
  for _, sink in ipairs(entry.sinks) do
    redis.call('ZADD', KEYS[2 * sink], given.score, entry.member)
    redis.call('ZADD', KEYS[2 * sink + 1], 0, entry.member)
  end
end
return 1
