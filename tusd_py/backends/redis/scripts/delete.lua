-- Remove a record and its part list, unless a later token was given out.
--
-- KEYS: record, parts, creation of a record that was removed; then, unless it is in another hash slot, usage.
-- ARGV: token, lifetime of the note of a creation (ms).
-- Returns 0 if nothing was removed, otherwise '=' and the owner.
--
-- An attempt of a young creation may still be on its way; the note has it make no record again.
--INCLUDE tally
local record = redis.call('HMGET', KEYS[1], 'fence', 'token', 'counted', 'owner', 'created_at')
local latest_token, record_token = tonumber(record[1] or 0) or 0, tonumber(record[2] or 0) or 0
local token = tonumber(ARGV[1])
if latest_token > token or record_token > token then return 0 end
if record[3] and KEYS[4] then tally(KEYS[1], KEYS[4], true) end
redis.call('DEL', KEYS[1], KEYS[2])
local created_at = tonumber(record[5] or '')
if created_at and redis.call('TIME')[1] - created_at < ARGV[2] / 1000 then
  redis.call('SET', KEYS[3], record[5], 'PX', ARGV[2])
end
return '=' .. (record[4] or '')
