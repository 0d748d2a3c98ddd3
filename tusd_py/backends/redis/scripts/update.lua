-- Replace a record if the token of the caller is the latest, and the record is as the caller read it.
--
-- KEYS: record, parts.
-- ARGV: a JSON object, see RedisState.update.
-- Returns 1, 2 if this change was made before, or 0 if nothing was changed.
--
-- A change that was made already (its reply was lost) succeeds. The latest token that was given out may be larger than
-- the token in the record. New bytes are out of reach of earlier holders, which then count no longer as unreleased,
-- until the new bytes are lost.
local record = redis.call('HMGET', KEYS[1], 'id', 'change', 'fence', 'token', 'offset', 'status')
local id, change_id, latest_token, record_token, offset, status = unpack(record, 1, 6)
local arguments = cjson.decode(ARGV[1])
if not id then return 0 end
if change_id == arguments.change_id then return 2 end
local token = tonumber(arguments.token)
if tonumber(latest_token or 0) > token or tonumber(record_token or 0) > token then return 0 end
if offset ~= arguments.offset or status ~= arguments.status then return 0 end
redis.call('HSET', KEYS[1], 'change', arguments.change_id, unpack(arguments.set))
if #arguments.remove > 0 then redis.call('HDEL', KEYS[1], unpack(arguments.remove)) end
if arguments.advances then redis.call('HDEL', KEYS[1], 'suspect') end
if arguments.retreats then redis.call('HINCRBY', KEYS[1], 'suspect', 1) end
for _, part in ipairs(arguments.parts) do redis.call('HSET', KEYS[2], part[1], part[2]) end
if arguments.complete then redis.call('DEL', KEYS[2]) end
return 1
