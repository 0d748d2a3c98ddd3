-- Return the replication id of this Redis, which names the history of its data; empty if the user may not ask.
--
-- The id is another one after every start, and after every promotion of a replica.
local function replication_id()
  local info = redis.pcall('INFO', 'replication')  -- a table with an error if the user may not ask
  return type(info) == 'string' and string.match(info, 'master_replid:(%w+)') or ''
end
