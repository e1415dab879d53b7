-- The programs of stored answers; common.lua says how they lie, since what removes a context's version removes them too.

local CURRENT, DISTILLED = 7, 14
local EVICTED_AT_ONCE = 100

-- The one of all that was used longest ago. What :answers:tenants says of a tenant may be too early, and is put right.
local function forget_oldest()
  while true do
    local tenant, at = unpack(call('ZRANGE', root .. ':answers:tenants', 0, 0, 'WITHSCORES'))
    if not tenant then return end
    local key, used_at = unpack(call('ZRANGE', answers_used(tenant), 0, 0, 'WITHSCORES'))
    if tonumber(used_at) <= tonumber(at) then return forget_answer(key) end
    call('ZADD', root .. ':answers:tenants', used_at, tenant)
  end
end

--- put
local tenant, name, fingerprint, origin, at, ttl, most, most_bytes, most_of_tenant = unpack(args)
local key, head, question, body = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
if name ~= '' then
  local packed = call('HGET', root .. ':contexts:' .. tenant, name)
  local context = packed and cmsgpack.unpack(packed)
  if not context or (context[CURRENT] ~= fingerprint and context[DISTILLED] ~= fingerprint) then return 0 end
end
forget_answer(key)
-- Grows with time too: a server that was lost may come back with less, and an index have seen more.
local serial = math.max(tonumber(call('GET', root .. ':answers:serial') or 0) + 1, math.floor(now * 1e6))
call('SET', root .. ':answers:serial', string.format('%.0f', serial))
local prefix = struct.pack(PREFIX, 0, serial, at > 0 and at or now, ttl, #head, #question)
call('SET', answer(key), prefix .. head .. question .. body)
call('ZADD', root .. ':answers:serials', serial, key)
call('ZADD', answers_used(tenant), now, key)
call('ZADD', root .. ':answers:tenants', 'LT', now, tenant)
call('SADD', answers_of(tenant, name, fingerprint), key)
if name ~= '' then call('HINCRBY', answer_counts(tenant, name), origin .. ':stored', 1) end
local answers = call('HINCRBY', root .. ':answers:sums', 'answers', 1)
local bytes = call('HINCRBY', root .. ':answers:sums', 'bytes', #prefix + #head + #question + #body)
for _ = 1, EVICTED_AT_ONCE do
  if most_of_tenant and call('ZCARD', answers_used(tenant)) > most_of_tenant then
    forget_answer(call('ZRANGE', answers_used(tenant), 0, 0)[1])
  elseif answers > most or bytes > most_bytes then
    forget_oldest()
  else
    break
  end
  answers = tonumber(call('HGET', root .. ':answers:sums', 'answers') or 0)
  bytes = tonumber(call('HGET', root .. ':answers:sums', 'bytes') or 0)
end
return 1

--- sweep
-- Whether there may be more to do.
local set = call('SRANDMEMBER', root .. ':answers:left')
if not set then return 0 end
forget_answers(set)
return 1

--- served
for index = 3, #ARGV do
  local used, tenant, name, _, origin = answer_head(ARGV[index])
  if used then
    call('ZADD', answers_used(tenant), now, ARGV[index])
    if used == 0 then call('SETRANGE', answer(ARGV[index]), 0, '\1') end
    if name ~= '' then
      call('HINCRBY', answer_counts(tenant, name), origin .. ':uses', 1)
      if used == 0 then call('HINCRBY', answer_counts(tenant, name), origin .. ':used', 1) end
    end
  end
end

--- drop
-- At most so many; how many it were.
local tenant, name, most = unpack(args)
local keys
if name == '' then
  keys = call('ZRANGE', answers_used(tenant), 0, most - 1)
else
  local packed = call('HGET', root .. ':contexts:' .. tenant, name)
  if not packed then return 0 end
  local context = cmsgpack.unpack(packed)
  keys = call('SRANDMEMBER', answers_of(tenant, name, context[CURRENT]), most)
  if #keys == 0 then keys = call('SRANDMEMBER', answers_of(tenant, name, context[DISTILLED] or ''), most) end
end
for _, key in ipairs(keys) do forget_answer(key) end
return #keys

--- after
-- Serial, key, head and question each.
local serial, limit = unpack(args)
local after, rows = '(' .. string.format('%.0f', serial), {}
local found = call('ZRANGEBYSCORE', root .. ':answers:serials', after, '+inf', 'WITHSCORES', 'LIMIT', 0, limit)
for index = 1, #found, 2 do
  local value = call('GET', answer(found[index]))
  local _, _, _, _, head, question = struct.unpack(PREFIX, value)
  local start = PREFIX_BYTES + head
  rows[#rows + 1] = {
    found[index + 1], found[index], value:sub(PREFIX_BYTES + 1, start), value:sub(start + 1, start + question)}
end
return rows

--- prune
-- From behind this serial, so many: the last serial that was looked at and how many were too old; nothing at the end.
local serial, limit = unpack(args)
local after, dropped = '(' .. string.format('%.0f', serial), 0
local found = call('ZRANGEBYSCORE', root .. ':answers:serials', after, '+inf', 'WITHSCORES', 'LIMIT', 0, limit)
if #found == 0 then return end
for index = 1, #found, 2 do
  local _, _, at, ttl = struct.unpack(PREFIX, call('GETRANGE', answer(found[index]), 0, PREFIX_BYTES - 1))
  if now - at > ttl then
    forget_answer(found[index])
    dropped = dropped + 1
  end
end
return {found[#found], dropped}

--- reseal
-- Only if question and body are still those that were opened.
local key, before, question, body = ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local value = call('GET', answer(key))
if not value then return 0 end
local used, serial, at, ttl, head_bytes = struct.unpack(PREFIX, value)
local start = PREFIX_BYTES + head_bytes
if value:sub(start + 1) ~= before then return 0 end
local prefix = struct.pack(PREFIX, used, serial, at, ttl, head_bytes, #question)
call('SET', answer(key), prefix .. value:sub(PREFIX_BYTES + 1, start) .. question .. body)
call('HINCRBY', root .. ':answers:sums', 'bytes', #question + #body - #before)
return 1
