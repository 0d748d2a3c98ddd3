-- Remove a record and its part list, unless a later token was given out.
--
-- KEYS: record, parts.
-- ARGV: token.
-- Returns 1, or 0 if nothing was removed.
local record = redis.call('HMGET', KEYS[1], 'fence', 'token')
local latest_token, record_token = tonumber(record[1] or 0) or 0, tonumber(record[2] or 0) or 0
local token = tonumber(ARGV[1])
if latest_token > token or record_token > token then return 0 end
redis.call('DEL', KEYS[1], KEYS[2])
return 1
