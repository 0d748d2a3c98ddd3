-- Add ids to the index of all uploads that it may lack.
--
-- KEYS: ids.
-- ARGV: the ids.
for _, id in ipairs(ARGV) do redis.call('ZADD', KEYS[1], 0, id) end
return 1
