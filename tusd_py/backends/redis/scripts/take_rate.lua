-- Take a share of a rate, see `tusd_py/contracts/rates.py`.
--
-- KEYS: the rate, whose value is the time in microseconds at which all that was taken is used up.
-- ARGV: share and burst in microseconds, 1 to take nothing if it is not there.
-- Returns the microseconds until the share is there. A clock of Redis that was set back shortens the wait to what the
-- rate can make necessary, where nothing is taken that is not there.
local share, burst, refuse = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local used_up = math.max(now, tonumber(redis.call('GET', KEYS[1]) or 0))
if refuse then used_up = math.min(used_up, now + burst) end
used_up = used_up + share
local wait = math.max(0, used_up - now - burst)
if share > 0 and not (wait > 0 and refuse) then
  local left = math.max(1, math.ceil((used_up - now) / 1000))
  redis.call('SET', KEYS[1], string.format('%.0f', used_up), 'PX', string.format('%.0f', left))
end
return string.format('%.0f', wait)
