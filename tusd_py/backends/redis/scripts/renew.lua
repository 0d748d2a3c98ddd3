-- Extend a lease, and report the requests to its holder.
--
-- KEYS: lock, record, release request, commit request.
-- ARGV: lease id, token, lifetime (ms).
-- Returns {held, release requested, commit requested}, each 0 or 1.
--
-- A lease that has expired is taken up again if nobody took it meanwhile, which the record tells.
local lease_id, token, ttl = ARGV[1], ARGV[2], ARGV[3]
local held = redis.call('GET', KEYS[1])
if held and string.match(held, '^%x+') == lease_id then
  redis.call('PEXPIRE', KEYS[1], ttl)
elseif held then
  return {0, 0, 0}
else
  local record = redis.call('HMGET', KEYS[2], 'fence', 'released')
  local latest_token, last_released_token = record[1], record[2]
  if latest_token ~= token or last_released_token == token then return {0, 0, 0} end
  redis.call('SET', KEYS[1], lease_id .. ':' .. token .. ':0', 'PX', ttl)
end
local release, commit = redis.call('GET', KEYS[3]), redis.call('GET', KEYS[4])
return {1, release == lease_id and 1 or 0, commit == lease_id and 1 or 0}
