-- Move an entry of the deliveries to a sink by time, or remove it, unless somebody else has moved it meanwhile.
--
-- KEYS: of the sink, its deliveries by time, its deliveries.
-- ARGV: member, score as it was read, new score (empty: remove the entry).
if tonumber(redis.call('ZSCORE', KEYS[1], ARGV[1]) or 'nan') ~= tonumber(ARGV[2]) then return 0 end
if ARGV[3] == '' then
  redis.call('ZREM', KEYS[2], ARGV[1])
  return redis.call('ZREM', KEYS[1], ARGV[1])
end
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1])
return 1
