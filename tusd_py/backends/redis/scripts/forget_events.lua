-- Remove deliveries from the indexes of the outbox, since their events were not stored.
--
-- KEYS: of each sink its deliveries by time and its deliveries.
-- ARGV: the members.
for _, key in ipairs(KEYS) do redis.call('ZREM', key, unpack(ARGV)) end
return 1
