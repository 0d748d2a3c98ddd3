-- Record the time when the index of due uploads was compared with all records.
--
-- KEYS: due.
-- ARGV: score, member.
return redis.call('ZADD', KEYS[1], ARGV[1], ARGV[2])
