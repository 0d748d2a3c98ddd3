-- Add a record.
--
-- KEYS: record.
-- ARGV: change id, then the fields and values of the record.
-- Returns 1, 2 if this change was made before, or 0 if another record has this id.
--INCLUDE replication_id
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'change') == ARGV[1] and 2 or 0
end
redis.call('HSET', KEYS[1], 'replid', replication_id(), 'change', unpack(ARGV))
return 1
