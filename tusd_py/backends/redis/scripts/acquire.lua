-- Take the lease of an upload, or ask its holder to release it.
--
-- KEYS: lock, record, release request.
-- ARGV: lease id, lifetime (ms), upload id, channel, lifetime of a request (ms; 0: ask nobody).
-- Returns {token, unreleased holders, record, time}; {'', milliseconds until the lease ends, {}, {}} if it is held.
--
-- The lock holds "lease id:token:unreleased holders"; the lease id makes a repeated attempt find its own lease. Without
-- a record the clock of Redis alone makes tokens grow: nothing is fenced by them.
--
-- Another history of the data than at the last lease (a replica took over, or Redis was started again) may lack a lease,
-- whose holder then counts as unreleased although the record names none.
--INCLUDE replication_id
local lease_id, ttl, id, channel, request_ttl = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local held = redis.call('GET', KEYS[1])
if held then
  local holder, token, unreleased = string.match(held, '^(%x+):(%d+):(%d+)$')
  if holder == lease_id then
    redis.call('PEXPIRE', KEYS[1], ttl)
    return {token, unreleased, {}, {}}
  end
  if request_ttl ~= '0' then
    redis.call('SET', KEYS[3], holder, 'PX', request_ttl)
    redis.call('PUBLISH', channel, 'release ' .. id .. ' ' .. holder)
  end
  local left = redis.call('PTTL', KEYS[1])
  if left > 10 * ttl then  -- the clock was set back: a living holder renews the lease in a moment
    redis.call('PEXPIRE', KEYS[1], ttl)
    left = tonumber(ttl)
  end
  return {'', left, {}, {}}
end
local time = redis.call('TIME')
local token = time[1] * 1000000 + time[2]
local unreleased = 0
local history = ''
local record = redis.call('HMGET', KEYS[2], 'id', 'token', 'fence', 'released', 'suspect', 'replid')
if record[1] then
  history = replication_id()
  local record_token, latest_token, last_released_token = record[2], record[3], record[4]
  local fence = latest_token or record_token
  token = math.max(token, (tonumber(record_token) or 0) + 1, (tonumber(fence) or 0) + 1)
  unreleased = tonumber(record[5] or 0) or 0
  -- Redis lost the latest token: the token of the last holder is in the record.
  local forgotten = not latest_token and record_token ~= '0'
  local older = latest_token and (tonumber(latest_token) or 0) < (tonumber(record_token) or 0)
  local other_redis = history ~= '' and record[6] ~= history
  if forgotten or older or other_redis or (latest_token and latest_token ~= last_released_token) then
    unreleased = unreleased + 1
    redis.call('HSET', KEYS[2], 'suspect', unreleased)
  end
end
token = string.format('%.0f', token)
if record[1] then redis.call('HSET', KEYS[2], 'fence', token, 'replid', history) end
redis.call('SET', KEYS[1], lease_id .. ':' .. token .. ':' .. unreleased, 'PX', ttl)
return {token, tostring(unreleased), redis.call('HGETALL', KEYS[2]), time}
