-- Add a record and its entries in the indexes, where no hash slots keep them apart.
--
-- KEYS: record, ids, due.
-- ARGV: upload id, time when the sweeper has to look at it ('': never), change id, then the fields and values.
-- Returns 1, 2 if this change was made before, or 0 if another record has this id.
--INCLUDE replication_id
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'change') == ARGV[3] and 2 or 0
end
redis.call('ZADD', KEYS[2], 0, ARGV[1])
if ARGV[2] ~= '' then redis.call('ZADD', KEYS[3], ARGV[2], ARGV[1]) end
redis.call('HSET', KEYS[1], 'replid', replication_id(), 'change', unpack(ARGV, 3))
return 1
