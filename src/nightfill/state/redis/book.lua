-- The book of contexts. Under the root:
--   :tenants
--   :contexts:TENANT   name -> record (below)
--   :versions:TENANT   fingerprint -> number of contexts that have it, fields of its fills, names of the contexts
--   :watched           TENANT NUL NAME of contexts whose source may change by itself
--   :content:TENANT NUL FINGERPRINT   sealed
--   :fills:TENANT      FINGERPRINT/FORM/SIGNATURE -> state, stored tokens, filled at, seconds, reason, digest and number of tokens
--   :tokens:TENANT NUL FIELD   sealed token list of that digest
--   :questions:TENANT NUL CONTEXT   sealed, the newest first
--   :changes           moves with each change; never comes back to where it was, not even when all was lost

local NAME, TENANT, SOURCE, FORMS, PINNED, TTL, CURRENT, BYTES, CREATED, UPDATED, CHECKED, USER, OPTIONS, DISTILLED =
  1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14
local STATE, STORED, FILLED, SECONDS, REASON, DIGEST = 1, 2, 3, 4, 5, 6

local function contexts(tenant) return root .. ':contexts:' .. tenant end
local function versions(tenant) return root .. ':versions:' .. tenant end
local function fills(tenant) return root .. ':fills:' .. tenant end
local function content(tenant, fingerprint) return root .. ':content:' .. tenant .. '\0' .. fingerprint end
local function questions(tenant, name) return root .. ':questions:' .. tenant .. '\0' .. name end
local function tokens(tenant, field) return root .. ':tokens:' .. tenant .. '\0' .. field end

local function get(key, field)
  local packed = call('HGET', key, field)
  return packed and cmsgpack.unpack(packed)
end

-- Of one that was written before there were options and distilled versions, the record ends early.
local function get_context(tenant, name)
  local context = get(contexts(tenant), name)
  if context then context[OPTIONS], context[DISTILLED] = context[OPTIONS] or '{}', context[DISTILLED] or '' end
  return context
end

local function changed()
  local time = call('TIME')
  call('SETNX', root .. ':changes', time[1] .. string.format('%06d', time[2]))
  return call('INCR', root .. ':changes')
end

-- One context more has the version, with this sealed content; even a known one is written, its old may be damaged.
local function take(tenant, name, fingerprint, sealed, more)
  local version = get(versions(tenant), fingerprint) or {0, {}, {}}
  version[1] = version[1] + more
  if more > 0 then
    version[3] = version[3] or {}
    table.insert(version[3], name)
  end
  call('HSET', versions(tenant), fingerprint, cmsgpack.pack(version))
  call('SET', content(tenant, fingerprint), sealed)
end

-- One context less, if it has the version no more: its answers go, and the last context takes text and fills with it.
local function leave(context, fingerprint)
  local tenant = context[TENANT]
  if fingerprint == '' then return end
  if context[CURRENT] ~= fingerprint and context[DISTILLED] ~= fingerprint then
    forget_answers(answers_of(tenant, context[NAME], fingerprint))
  end
  local version = get(versions(tenant), fingerprint)
  version[1] = version[1] - 1
  for index, name in ipairs(version[3] or {}) do
    if name == context[NAME] then
      table.remove(version[3], index)
      break
    end
  end
  if version[1] > 0 then return call('HSET', versions(tenant), fingerprint, cmsgpack.pack(version)) end
  for _, field in ipairs(version[2]) do
    call('HDEL', fills(tenant), field)
    call('UNLINK', tokens(tenant, field))
  end
  call('UNLINK', content(tenant, fingerprint))
  call('HDEL', versions(tenant), fingerprint)
  for _, kind in ipairs({'fill', 'distil'}) do cancel_target(kind, tenant .. '/' .. fingerprint .. '/') end
end

local function make_current(context, fingerprint, bytes, sealed)
  local old, distilled = context[CURRENT], context[DISTILLED]
  take(context[TENANT], context[NAME], fingerprint, sealed, old == fingerprint and 0 or 1)
  context[CURRENT], context[BYTES], context[CHECKED] = fingerprint, bytes, now
  if old ~= fingerprint then
    context[UPDATED], context[DISTILLED] = now, ''
    leave(context, old)
    leave(context, distilled)
  end
  local packed = cmsgpack.pack(context)
  call('HSET', contexts(context[TENANT]), context[NAME], packed)
  look_now(context[TENANT], context[NAME])
  return {changed(), packed}
end

--- put
local tenant, name, source, forms, pinned, ttl, user, options, fingerprint, bytes, watched = unpack(args)
local old = get_context(tenant, name) or {name, tenant, '', '', false, false, '', 0, now, now, now, '', '{}', ''}
old[SOURCE], old[FORMS], old[PINNED], old[TTL], old[USER] = source, forms, pinned, ttl, user
old[OPTIONS] = options or old[OPTIONS]
call('SADD', root .. ':tenants', tenant)
call(watched and 'SADD' or 'SREM', root .. ':watched', tenant .. '\0' .. name)
return make_current(old, fingerprint, bytes, ARGV[3])

--- replace
-- Only if version and source still are those that were seen.
local tenant, name, current, source, fingerprint, bytes = unpack(args)
local context = get_context(tenant, name)
if not context or context[CURRENT] ~= current or context[SOURCE] ~= source then return {0} end
return make_current(context, fingerprint, bytes, ARGV[3])

--- put_distilled
-- Only if the version is still the one that it was made of.
local tenant, name, current, fingerprint = unpack(args)
local context = get_context(tenant, name)
if not context or context[CURRENT] ~= current then return {0} end
local old = context[DISTILLED]
take(tenant, name, fingerprint, ARGV[3], old == fingerprint and 0 or 1)
context[DISTILLED] = fingerprint
if old ~= fingerprint then leave(context, old) end
call('HSET', contexts(tenant), name, cmsgpack.pack(context))
look_now(tenant, name)
return {changed()}

--- delete
local tenant, name = unpack(args)
local context = get_context(tenant, name)
if not context then return {0} end
local current, distilled = context[CURRENT], context[DISTILLED]
context[CURRENT], context[DISTILLED] = '', ''
call('HDEL', contexts(tenant), name)
if call('EXISTS', contexts(tenant)) == 0 then call('SREM', root .. ':tenants', tenant) end
leave(context, current)
leave(context, distilled)
look_no_more(tenant .. '\0' .. name)
call('SREM', root .. ':watched', tenant .. '\0' .. name)
call('UNLINK', answer_counts(tenant, name), questions(tenant, name))
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
if fill[STATE] ~= 'filling' and not (old and old[STATE] == fill[STATE]) then look_at_version(tenant, fingerprint) end
return {changed()}

--- mark_fill
local tenant, field, state, reason, stored = unpack(args)
local fill = get(fills(tenant), field)
if not fill then return {0} end
fill[STATE], fill[REASON], fill[STORED] = state, reason, stored or fill[STORED]
call('HSET', fills(tenant), field, cmsgpack.pack(fill))
look_at_version(tenant, string.sub(field, 1, 64))
return {changed()}

--- drop_fill
local tenant, fingerprint, field = unpack(args)
if call('HDEL', fills(tenant), field) == 0 then return {0} end
call('UNLINK', tokens(tenant, field))
local version, others = get(versions(tenant), fingerprint), {}
for _, other in ipairs(version[2]) do
  if other ~= field then others[#others + 1] = other end
end
call('HSET', versions(tenant), fingerprint, cmsgpack.pack({version[1], others, version[3]}))
look_at_version(tenant, fingerprint)
return {changed()}

--- note_questions
local tenant, name, most = unpack(args)
if not get(contexts(tenant), name) then return end
for index = 3, #ARGV do call('LPUSH', questions(tenant, name), ARGV[index]) end
call('LTRIM', questions(tenant, name), 0, most - 1)

--- reseal_questions
-- Only if they are still those that were opened: the first half of the blobs; the second is what they become.
local key, count = root .. args[1], (#ARGV - 2) / 2
if call('LLEN', key) ~= count then return 0 end
for index, sealed in ipairs(call('LRANGE', key, 0, -1)) do
  if sealed ~= ARGV[2 + index] then return 0 end
end
for index = 1, count do call('LSET', key, index - 1, ARGV[2 + count + index]) end
return 1

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

