-- Replace a record if the token of the caller is the latest, and the record is as the caller read it.
--
-- KEYS: record, parts; then, unless it is in another hash slot, usage; then the records of the partial uploads of a
-- final upload that counts in their place from now on, or no more.
-- ARGV: a JSON object, see RedisState.update.
-- Returns 1, 2 if this change was made before, 0 if nothing was changed, 'bytes' if the quota is exhausted, or
-- 'count' if the usage is to be counted first.
--
-- A change that was made already (its reply was lost) succeeds. The latest token that was given out may be larger than
-- the token in the record. New bytes are out of reach of earlier holders, which then count no longer as unreleased,
-- until the new bytes are lost.
--
-- Redis may have lost changes that the caller was told of, and be at the same offset all the same. A length that is
-- lost is set again, since its sender does not declare it twice; where the bytes are kept is not guessed. An upload
-- that ends may be kept elsewhere than its record says: a completion that is refused has stored it as a whole.
--INCLUDE tally
local record = redis.call('HMGET', KEYS[1], 'id', 'change', 'fence', 'token', 'offset', 'status', 'owner')
local id, change_id, latest_token, record_token, offset, status, owner = unpack(record, 1, 7)
local length, layout = unpack(redis.call('HMGET', KEYS[1], 'length', 'layout'), 1, 2)
local arguments = cjson.decode(ARGV[1])
if not id then return 0 end
if change_id == arguments.change_id then return 2 end
local token = tonumber(arguments.token)
if tonumber(latest_token or 0) > token or tonumber(record_token or 0) > token then return 0 end
if offset ~= arguments.offset or status ~= arguments.status then return 0 end
local differs = length and length ~= arguments.length or (layout or '') ~= arguments.layout
if arguments.compares and differs then return 0 end
local function is_partial(key) return redis.call('HGET', key, 'concatenation') == 'partial' end
if arguments.grows > 0 then
  owner = owner or ''
  -- A record that the count has missed is counted before its share is compared.
  tally(KEYS[1], KEYS[3])
  for position = 4, #KEYS do
    if is_partial(KEYS[position]) then tally(KEYS[position], KEYS[3]) end
  end
  local mark, bytes = unpack(redis.call('HMGET', KEYS[3], '.', 'b ' .. owner), 1, 2)
  if not string.find(mark or '', 'ready') then return 'count' end
  local grows = arguments.grows
  for position = 4, #KEYS do
    local generation, share, _, partial_owner = counted_of(KEYS[position])
    local is_counted = generation == string.match(mark, '^%x+') and partial_owner == owner
    if is_counted and is_partial(KEYS[position]) then grows = grows - share end
  end
  if grows > 0 and tonumber(bytes or 0) + grows > tonumber(arguments.quota) then return 'bytes' end
end
redis.call('HSET', KEYS[1], 'change', arguments.change_id, unpack(arguments.set))
if #arguments.remove > 0 then redis.call('HDEL', KEYS[1], unpack(arguments.remove)) end
if arguments.advances then redis.call('HDEL', KEYS[1], 'suspect') end
if arguments.retreats then redis.call('HINCRBY', KEYS[1], 'suspect', 1) end
for _, part in ipairs(arguments.parts) do redis.call('HSET', KEYS[2], part[1], part[2]) end
if arguments.complete then redis.call('DEL', KEYS[2]) end
if KEYS[3] then tally(KEYS[1], KEYS[3]) end
for position = 4, #KEYS do
  if is_partial(KEYS[position]) then
    if arguments.joins then
      redis.call('HSET', KEYS[position], 'uncounted', '1')
      local latest_expiry = tonumber(arguments.partials_until)
      local expires_at = tonumber(redis.call('HGET', KEYS[position], 'expires_at') or '')
      if latest_expiry and not (expires_at and expires_at <= latest_expiry) then
        redis.call('HSET', KEYS[position], 'expires_at', arguments.partials_until)
      end
    else
      redis.call('HDEL', KEYS[position], 'uncounted')
    end
    tally(KEYS[position], KEYS[3])
  end
end
return 1
