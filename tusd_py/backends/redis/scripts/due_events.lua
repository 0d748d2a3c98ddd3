-- Read the index of the deliveries to a sink that are due.
--
-- KEYS: of the sink, its deliveries by time, its deliveries, its dead letters.
-- ARGV: now, time from which on a delivery is too far ahead, entries to skip beside the mark, which is the first one,
-- number of entries at most, the mark.
-- Returns {score of the mark ('': an index was lost), members and scores of due entries, those of entries far ahead}.
local now, far_ahead, skip, count, mark = unpack(ARGV)
local compared_at = redis.call('ZSCORE', KEYS[1], mark)
if not (redis.call('ZSCORE', KEYS[2], mark) and redis.call('ZSCORE', KEYS[3], mark)) then compared_at = false end
local due = redis.call('ZRANGE', KEYS[1], '-inf', now, 'BYSCORE', 'LIMIT', skip + 1, count, 'WITHSCORES')
local far = {}
if skip == '0' then
  far = redis.call('ZRANGE', KEYS[1], '(' .. far_ahead, '+inf', 'BYSCORE', 'LIMIT', 0, count, 'WITHSCORES')
end
return {compared_at or '', due, far}
