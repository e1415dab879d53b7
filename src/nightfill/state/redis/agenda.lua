-- When contexts are to be looked at; see common.

-- All that is needed to plan a context: its record, uses, fills, jobs, whether its version is shared, where it stands.
local function gather(member)
  local tenant, name = string.match(member, '^(%Z*)%z(.*)$')
  local record = call('HGET', root .. ':contexts:' .. tenant, name)
  if not record then return end
  local context, fills, jobs, shared = cmsgpack.unpack(record), {}, {}, 0
  for _, fingerprint in ipairs({context[7], context[14] or ''}) do
    local packed = fingerprint ~= '' and call('HGET', root .. ':versions:' .. tenant, fingerprint)
    if packed then
      local version = cmsgpack.unpack(packed)
      if version[1] > 1 then shared = 1 end
      for _, field in ipairs(version[2]) do
        local fill = call('HGET', root .. ':fills:' .. tenant, field)
        if fill then fills[#fills + 1], fills[#fills + 2] = field, fill end
      end
      local target = tenant .. '/' .. fingerprint
      for _, found in ipairs(call('ZRANGEBYLEX', root .. ':open:fill', '[' .. target .. '/', '(' .. target .. '0')) do
        jobs[#jobs + 1] = call('HGET', root .. ':jobs', string.match(found, '%z(%d+)$'))
      end
      -- Of one that was written before the names were.
      local named = false
      for _, other in ipairs(version[3] or {}) do named = named or other == name end
      if not named then
        version[3] = version[3] or {}
        table.insert(version[3], name)
        call('HSET', root .. ':versions:' .. tenant, fingerprint, cmsgpack.pack(version))
      end
    end
  end
  local at = call('ZSCORE', root .. ':agenda', member)
  return {record, call('HGETALL', root .. ':uses:' .. member), fills, jobs, shared, at or ''}
end

local function gather_all(members)
  local found = {}
  for _, member in ipairs(members) do found[#found + 1] = gather(member) end
  return {string.format('%.17g', now), found}
end

--- due
-- What is given is not due again for `claim_s`.
local limit, claim_s = unpack(args)
local agenda = root .. ':agenda'
local members = call('ZRANGEBYSCORE', agenda, '-inf', string.format('%.17g', now), 'LIMIT', 0, limit)
local told = gather_all(members)
for _, member in ipairs(members) do call('ZADD', agenda, now + claim_s, member) end
return told

--- gather
return gather_all(args[1])

--- having
local tenant, fingerprint = unpack(args)
local packed = call('HGET', root .. ':versions:' .. tenant, fingerprint)
local members = {}
for index, name in ipairs(packed and cmsgpack.unpack(packed)[3] or {}) do members[index] = tenant .. '\0' .. name end
return gather_all(members)

--- looked
-- Only of those that stand where they stood when they were given, or nowhere as then.
local agenda, waits = root .. ':agenda', root .. ':waits'
for _, look in ipairs(args[1]) do
  local tenant, name, mark, in_s, priority, budget = unpack(look)
  local member = tenant .. '\0' .. name
  local at, before = call('ZSCORE', agenda, member), call('HGET', waits, member)
  local known = at or call('HEXISTS', root .. ':contexts:' .. tenant, name) == 1
  if known and (at and tonumber(at)) == mark then
    call('ZADD', agenda, now + in_s, member)
    if before and before ~= budget then
      call('ZREM', root .. ':waiting:' .. before, member)
      call('HDEL', waits, member)
    end
    if budget ~= '' then
      call('ZADD', root .. ':waiting:' .. budget, -priority, member)
      call('HSET', waits, member, budget)
    end
  end
end

--- set_limit
local field, tokens, budget, most = unpack(args)
if tokens then
  call('HSET', root .. ':limits', field, tokens)
  note_payer(budget)
else
  call('HDEL', root .. ':limits', field)
end
wake(budget, most)
