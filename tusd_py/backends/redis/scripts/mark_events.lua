-- Record in the indexes of a sink when they were compared with the events of all uploads.
--
-- KEYS: of the sink, its deliveries by time, its deliveries, its dead letters.
-- ARGV: score, mark, option of ZADD (NX before the comparison, XX after it: an index is not the same if it was lost
-- meanwhile).
redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], 0, ARGV[2])
redis.call('ZADD', KEYS[3], ARGV[3], 0, ARGV[2])
return 1
