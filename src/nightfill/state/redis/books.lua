-- Budgets as they stand, the access log, notes on engines, deletions that are owed. Under the root:
--   :accesses, :access  packed rows, each behind its number, by time; the last number
--   :uses:TENANT NUL CONTEXT    hour -> accesses, broken promises, time of the last one; of models under no tenant
--   :appended:LOG       highest number of a log's rows that are here
--   :engines            name -> seen at, note
--   :deletions          names of blocks, by since when they are to go
--   :load               host -> requests in flight, idle for, time to first token, said at

local HISTORY_S, HISTORY_HOURS = 28 * DAY_S, 28 * 24

--- budget_lines
return cmsgpack.pack(budget_lines(args[1]))

--- spent
-- The keys of what is spent now.
local current = periods()
return {current[1][2], current[2][2]}

--- append
local function note_use(at, tenant, context, broken)
  local key, hour = root .. ':uses:' .. tenant .. '\0' .. context, math.floor(at / 3600)
  local packed = call('HGET', key, hour)
  local row = packed and cmsgpack.unpack(packed) or {0, 0, 0}
  call('HSET', key, hour, cmsgpack.pack({row[1] + 1, row[2] + broken, math.max(row[3], at)}))
  if packed then return end
  call('EXPIRE', key, HISTORY_S + DAY_S)
  if call('HLEN', key) > HISTORY_HOURS + 24 then
    for _, old in ipairs(call('HKEYS', key)) do
      if tonumber(old) < hour - HISTORY_HOURS then call('HDEL', key, old) end
    end
  end
end

local log, most, rows = unpack(args)
local last = tonumber(call('GET', root .. ':appended:' .. log) or 0)
for index, row in ipairs(rows) do
  local number, at, tenant, context, broken, machine, user, served, hit, saved_tokens, saved_s, tells, model = unpack(row)
  if number > last then
    last = number
    call('ZADD', root .. ':accesses', at, string.format('%016d', call('INCR', root .. ':access')) .. ARGV[2 + index])
    if model ~= '' then note_use(at, '', model, 0) end
    if context ~= '' then
      note_use(at, tenant, context, broken)
      if tells then call('ZADD', root .. ':agenda', 'XX', 'LT', now - HEADSTART_S, tenant .. '\0' .. context) end
      if served then
        to_ledger(math.floor(at / DAY_S), tenant, context, machine, user, {0, 0, 0, 1, hit, saved_tokens, saved_s})
      end
    end
  end
end
call('SET', root .. ':appended:' .. log, last, 'EX', DAY_S)
call('ZREMRANGEBYRANK', root .. ':accesses', 0, -most - 1)

--- prune_accesses
return call('ZREMRANGEBYSCORE', root .. ':accesses', '-inf', '(' .. string.format('%.17g', now - args[1]))

--- note_engine
call('HSET', root .. ':engines', args[1], cmsgpack.pack({now, args[2]}))

--- owe
for index = 3, #ARGV do call('ZADD', root .. ':deletions', 'NX', now, ARGV[index]) end

--- publish
local host, in_flight, idle_s, ttft_s = unpack(args)
call('HSET', root .. ':load', host, cmsgpack.pack({in_flight, idle_s, ttft_s, now}))

--- loads
local rows, all = {}, call('HGETALL', root .. ':load')
for index = 1, #all, 2 do
  local load = cmsgpack.unpack(all[index + 1])
  if now - load[4] > args[1] then
    call('HDEL', root .. ':load', all[index])
  else
    rows[#rows + 1] = {all[index], load[1], load[2], load[3], math.max(now - load[4], 0)}
  end
end
return cmsgpack.pack(rows)
