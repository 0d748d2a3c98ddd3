-- Mark the usage as counted, if the Redis that the records were read from is still the same.
--
-- KEYS: usage.
-- ARGV: mark of the count, mark of a usage that is counted, replication id at the beginning.
-- Returns 1, or 0 if nothing was changed. A repeated attempt, whose reply was lost, changes nothing more.
--INCLUDE replication_id
if redis.call('HGET', KEYS[1], '.') ~= ARGV[1] or replication_id() ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], '.', ARGV[2])
return 1
