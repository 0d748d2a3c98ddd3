-- Record the time when the index of due uploads was compared with all records.
--
-- KEYS: due.
-- ARGV: score, member, option of ZADD (NX before the comparison, XX after it: the index is not the same if it was lost
-- meanwhile).
return redis.call('ZADD', KEYS[1], ARGV[3], ARGV[1], ARGV[2])
