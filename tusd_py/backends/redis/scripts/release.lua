-- End a lease, and wake the requests that wait for it.
--
-- Every attempt of a request that waits renews the release request: without one nobody waits, and there is no message,
-- which would cost every process some time.
--
-- KEYS: lock, record, release request.
-- ARGV: lease id, token ('0': its holder was told of none), upload id, channel, clean ('1': it writes nothing more).
local lease_id, token, id, channel, clean = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local held = redis.call('GET', KEYS[1])
local holder, given = string.match(held or '', '^(%x+):(%d+)')
if holder == lease_id then
  token = given
  redis.call('DEL', KEYS[1])
end
local record = redis.call('HMGET', KEYS[2], 'fence', 'token')
local latest_token, record_token = record[1], record[2]
-- A record made under the lock has no latest token.
if clean == '1' and token ~= '0' and (latest_token or record_token) == token then
  redis.call('HSET', KEYS[2], 'fence', token, 'released', token)
end
if redis.call('DEL', KEYS[3]) == 1 then
  redis.call('PUBLISH', channel, 'released ' .. id .. ' -')
end
return 1
