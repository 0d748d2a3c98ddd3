-- Refuse a call that arrives after its deadline: its sender has given it up.
--
-- ARGV: those of the script, then the deadline in microseconds, which is removed.
-- Fails with 'LATE', seconds and microseconds of this clock. The sender reckons with this clock as it knows it: a deadline
-- that no call has shows that it has jumped back since.
do
  local deadline, time = tonumber(table.remove(ARGV)), redis.call('TIME')
  local left = deadline - time[1] * 1000000 - time[2]
  if left < 0 or left > 2000000 then return redis.error_reply('LATE ' .. time[1] .. ' ' .. time[2]) end
end
