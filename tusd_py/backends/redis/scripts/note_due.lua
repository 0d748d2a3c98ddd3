-- Add an entry to the index of due uploads, or move it to an earlier time.
--
-- KEYS: due.
-- ARGV: score, upload id.
return redis.call('ZADD', KEYS[1], 'LT', ARGV[1], ARGV[2])
