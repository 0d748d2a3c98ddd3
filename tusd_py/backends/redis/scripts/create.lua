-- Add a record.
--
-- KEYS: record.
-- ARGV: change id, then the fields and values of the record.
-- Returns 1, 2 if this change was made before, or 0 if another record has this id.
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'change') == ARGV[1] and 2 or 0
end
local info = redis.pcall('INFO', 'server')  -- a table with an error if the user may not ask
local run = type(info) == 'string' and string.match(info, 'run_id:(%w+)') or ''
redis.call('HSET', KEYS[1], 'run', run, 'change', unpack(ARGV))
return 1
