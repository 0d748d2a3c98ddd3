-- Count records that are not counted yet.
--
-- KEYS: usage, then records.
-- Returns the replication id.
--INCLUDE replication_id
--INCLUDE tally
for position = 2, #KEYS do
  if redis.call('HGET', KEYS[position], 'id') then tally(KEYS[position], KEYS[1]) end
end
return replication_id()
