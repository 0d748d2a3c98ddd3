-- Add a record and its entries in the indexes, where no hash slots keep them apart.
--
-- KEYS: record, creation of a record that was removed (`create.lua`), ids, due, usage; uploads by creation, those that
-- are not complete, those of the owner (none without one).
-- ARGV: quota of bytes and of unfinished uploads of the owner ('': none), bytes that have to be free, whether the upload
-- is unfinished (1 or 0), owner; upload id, time when the sweeper has to look at it ('': never), creation time, change
-- id, then the fields and values.
-- Returns 1, 2 if this change was made before, 0 if another record has this id, 'bytes' or 'uploads' if that quota is
-- exhausted, or 'count' if the usage is to be counted first.
--INCLUDE replication_id
--INCLUDE tally
local quota, quota_open, needed, opens, owner, id, due, created_at, change_id = unpack(ARGV, 1, 9)
if redis.call('EXISTS', KEYS[1]) == 1 then
  return redis.call('HGET', KEYS[1], 'change') == change_id and 2 or 0
end
if redis.call('GET', KEYS[2]) == created_at then return 2 end
if quota ~= '' or quota_open ~= '' then
  local mark, bytes, open = unpack(redis.call('HMGET', KEYS[5], '.', 'b ' .. owner, 'n ' .. owner), 1, 3)
  if not string.find(mark or '', 'ready') then return 'count' end
  needed = tonumber(needed)
  if quota ~= '' and needed > 0 and tonumber(bytes or 0) + needed > tonumber(quota) then return 'bytes' end
  if quota_open ~= '' and opens == '1' and tonumber(open or 0) >= tonumber(quota_open) then return 'uploads' end
end
redis.call('ZADD', KEYS[3], 0, id)
if due ~= '' then redis.call('ZADD', KEYS[4], due, id) end
if redis.call('ZSCORE', KEYS[6], '.') then  -- a server is administrated
  for position = 6, #KEYS do redis.call('ZADD', KEYS[position], created_at, id) end
end
redis.call('HSET', KEYS[1], 'replid', replication_id(), 'change', unpack(ARGV, 9))
tally(KEYS[1], KEYS[5])
return 1
