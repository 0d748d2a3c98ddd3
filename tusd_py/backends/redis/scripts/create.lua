-- Add a record.
--
-- KEYS: record, creation of a record that was removed.
-- ARGV: creation time, change id, then the fields and values of the record.
-- Returns 1, 2 if this change was made before, or 0 if another record has this id.
--
-- An attempt may arrive after a later one has made the record, and the record was removed.
--INCLUDE replication_id
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'change') == ARGV[2] and 2 or 0
end
if redis.call('GET', KEYS[2]) == ARGV[1] then return 2 end
redis.call('HSET', KEYS[1], 'replid', replication_id(), 'change', unpack(ARGV, 2))
return 1
