-- Replace a text that is kept beside the records.
--
-- KEYS: metadata.
-- ARGV: name, new value, expected value (empty: there is none).
-- Returns 1, or 0 if another value was found. A repeated attempt, whose reply was lost, finds its own value.
local held = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if held == ARGV[2] then return 1 end
if held ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
return 1
