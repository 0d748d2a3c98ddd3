-- Read the state of every delivery of the events of an upload.
--
-- KEYS: events of the upload.
-- Returns event id, sink and state of each.
local found = {}
for _, field in ipairs(redis.call('HKEYS', KEYS[1])) do
  local id, sink = string.match(field, '^d (%S+) (.*)$')
  if id then
    table.insert(found, id)
    table.insert(found, sink)
    table.insert(found, redis.call('HGET', KEYS[1], field))
  end
end
return found
