-- Remove a record and its part list, unless a later token was given out.
--
-- KEYS: record, parts; then, unless it is in another hash slot, usage.
-- ARGV: token.
-- Returns 0 if nothing was removed, otherwise '=' and the owner.
--INCLUDE tally
local record = redis.call('HMGET', KEYS[1], 'fence', 'token', 'counted', 'owner')
local latest_token, record_token = tonumber(record[1] or 0) or 0, tonumber(record[2] or 0) or 0
local token = tonumber(ARGV[1])
if latest_token > token or record_token > token then return 0 end
if record[3] and KEYS[3] then tally(KEYS[1], KEYS[3], true) end
redis.call('DEL', KEYS[1], KEYS[2])
return '=' .. (record[4] or '')
