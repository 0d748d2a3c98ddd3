-- Return some fields of records, in one reply instead of one for each record.
--
-- KEYS: records.
-- ARGV: number of fields, then their names.
-- Returns a list of values for each record; false for a value that is missing.
local found = {}
local names = {unpack(ARGV, 2, ARGV[1] + 1)}
for position, key in ipairs(KEYS) do found[position] = redis.call('HMGET', key, unpack(names)) end
return found
