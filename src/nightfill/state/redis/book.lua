-- The book of contexts. Under the root:
--   :tenants
--   :contexts:TENANT   name -> record (below)
--   :versions:TENANT   fingerprint -> number of contexts that have it, fields of its fills
--   :content:TENANT NUL FINGERPRINT   sealed
--   :fills:TENANT      FINGERPRINT/FORM/SIGNATURE -> state, stored tokens, filled at, seconds, reason, digest of tokens
--   :tokens:TENANT NUL FIELD   sealed token list of that digest
--   :changes           moves with each change; never comes back to where it was, not even when all was lost

local NAME, TENANT, SOURCE, FORMS, PINNED, TTL, CURRENT, BYTES, CREATED, UPDATED, CHECKED, USER =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12
local STATE, STORED, FILLED, SECONDS, REASON, DIGEST = 1, 2, 3, 4, 5, 6

local function contexts(tenant) return root .. ':contexts:' .. tenant end
local function versions(tenant) return root .. ':versions:' .. tenant end
local function fills(tenant) return root .. ':fills:' .. tenant end
local function content(tenant, fingerprint) return root .. ':content:' .. tenant .. '\0' .. fingerprint end
local function tokens(tenant, field) return root .. ':tokens:' .. tenant .. '\0' .. field end

local function get(key, field)
  local packed = call('HGET', key, field)
  return packed and cmsgpack.unpack(packed)
end

local function changed()
  local time = call('TIME')
  call('SETNX', root .. ':changes', time[1] .. string.format('%06d', time[2]))
  return call('INCR', root .. ':changes')
end

-- One context more has the version, with this sealed content; even a known one is written, its old may be damaged.
local function take(tenant, fingerprint, sealed, more)
  local version = get(versions(tenant), fingerprint) or {0, {}}
  version[1] = version[1] + more
  call('HSET', versions(tenant), fingerprint, cmsgpack.pack(version))
  call('SET', content(tenant, fingerprint), sealed)
end

-- One context less; the last one takes text and fills with it.
local function drop(tenant, fingerprint)
  local version = get(versions(tenant), fingerprint)
  version[1] = version[1] - 1
  if version[1] > 0 then return call('HSET', versions(tenant), fingerprint, cmsgpack.pack(version)) end
  for _, field in ipairs(version[2]) do
    call('HDEL', fills(tenant), field)
    call('UNLINK', tokens(tenant, field))
  end
  call('UNLINK', content(tenant, fingerprint))
  call('HDEL', versions(tenant), fingerprint)
end

local function make_current(context, fingerprint, bytes, sealed)
  local old = context[CURRENT]
  take(context[TENANT], fingerprint, sealed, old == fingerprint and 0 or 1)
  if old ~= fingerprint then
    if old ~= '' then drop(context[TENANT], old) end
    context[UPDATED] = now
  end
  context[CURRENT], context[BYTES], context[CHECKED] = fingerprint, bytes, now
  local packed = cmsgpack.pack(context)
  call('HSET', contexts(context[TENANT]), context[NAME], packed)
  return {changed(), packed}
end

--- put
local tenant, name, source, forms, pinned, ttl, user, fingerprint, bytes = unpack(args)
local old = get(contexts(tenant), name) or {name, tenant, '', '', false, false, '', 0, now, now, now, ''}
old[SOURCE], old[FORMS], old[PINNED], old[TTL], old[USER] = source, forms, pinned, ttl, user
call('SADD', root .. ':tenants', tenant)
return make_current(old, fingerprint, bytes, ARGV[3])

--- replace
-- Only if version and source still are those that were seen.
local tenant, name, current, source, fingerprint, bytes = unpack(args)
local context = get(contexts(tenant), name)
if not context or context[CURRENT] ~= current or context[SOURCE] ~= source then return {0} end
return make_current(context, fingerprint, bytes, ARGV[3])

--- delete
local tenant, name = unpack(args)
local context = get(contexts(tenant), name)
if not context then return {0} end
call('HDEL', contexts(tenant), name)
if call('EXISTS', contexts(tenant)) == 0 then call('SREM', root .. ':tenants', tenant) end
drop(tenant, context[CURRENT])
return {changed()}

--- checked
local tenant, name = unpack(args)
local context = get(contexts(tenant), name)
if not context then return end
context[CHECKED] = now
call('HSET', contexts(tenant), name, cmsgpack.pack(context))

--- put_fill
-- 0: no context has the version any more. -1: the token list must be sent too, which is not here under this digest.
local tenant, fingerprint, field, fill = unpack(args)
local version = get(versions(tenant), fingerprint)
if not version then return {0} end
local old = get(fills(tenant), field)
if ARGV[3] then
  call('SET', tokens(tenant, field), ARGV[3])
elseif not old or old[DIGEST] ~= fill[DIGEST] then
  return {-1}
end
if not old then
  version[2][#version[2] + 1] = field
  call('HSET', versions(tenant), fingerprint, cmsgpack.pack(version))
end
call('HSET', fills(tenant), field, cmsgpack.pack(fill))
return {changed()}

--- mark_fill
local tenant, field, state, reason, stored = unpack(args)
local fill = get(fills(tenant), field)
if not fill then return {0} end
fill[STATE], fill[REASON], fill[STORED] = state, reason, stored or fill[STORED]
call('HSET', fills(tenant), field, cmsgpack.pack(fill))
return {changed()}

--- drop_fill
local tenant, fingerprint, field = unpack(args)
if call('HDEL', fills(tenant), field) == 0 then return {0} end
call('UNLINK', tokens(tenant, field))
local version, others = get(versions(tenant), fingerprint), {}
for _, other in ipairs(version[2]) do
  if other ~= field then others[#others + 1] = other end
end
call('HSET', versions(tenant), fingerprint, cmsgpack.pack({version[1], others}))
return {changed()}

--- reseal
-- Sealed anew: only if it is still what was opened.
local key = root .. args[1]
if call('GET', key) ~= ARGV[3] then return 0 end
call('SET', key, ARGV[4])
return 1

--- reseal_source
local tenant, name, before, after = unpack(args)
local context = get(contexts(tenant), name)
if not context or context[SOURCE] ~= before then return 0 end
context[SOURCE] = after
call('HSET', contexts(tenant), name, cmsgpack.pack(context))
return 1

