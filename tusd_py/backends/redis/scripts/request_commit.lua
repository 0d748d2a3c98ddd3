-- Ask the holder of a lease to commit its bytes.
--
-- KEYS: lock, commit request.
-- ARGV: upload id, channel, lifetime of the request (ms).
-- Returns 1 if the lease is held, otherwise 0.
local held = redis.call('GET', KEYS[1])
if not held then return 0 end
local holder = string.match(held, '^%x+')
redis.call('SET', KEYS[2], holder, 'PX', ARGV[3])
redis.call('PUBLISH', ARGV[2], 'commit ' .. ARGV[1] .. ' ' .. holder)
return 1
