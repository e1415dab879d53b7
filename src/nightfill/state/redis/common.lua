-- What all programs share. Called as: 1 root now args blobs...; `now` is empty but in tests, `args` msgpack.
-- Each runs as one atomic step. Names hold no NUL, which therefore parts them in keys and members.
-- In other files follows what their programs share, then the programs, each after a line `--- name`. A program gets the
-- functions that it calls and those that they call, for they are made anew at each call; the rest all get.
local call = redis.call
local root, args = KEYS[1], cmsgpack.unpack(ARGV[2])

local time = ARGV[1] == '' and call('TIME')
local now = time and tonumber(time[1]) + tonumber(time[2]) / 1e6 or tonumber(ARGV[1])

local DAY_S = 86400
local HEADSTART_S = 1.5e9  -- as `state.agenda` has it

-- How a stored answer begins: whether it served, serial, when it was made, time to live, bytes of head and of question.
local PREFIX, PREFIX_BYTES = '>BdddI4I4', 33
local FORGOTTEN_AT_ONCE = 500

-- Days since 1970-01-01 of the first of the month that `day` is in, and of the next one.
-- Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", civil_from_days and days_from_civil.
local function month_of(day)
  local function days(year, month)
    if month <= 2 then year = year - 1 end
    local era = math.floor(year / 400)
    local of_era = year - era * 400
    local of_year = math.floor((153 * ((month + 9) % 12) + 2) / 5)
    return era * 146097 + of_era * 365 + math.floor(of_era / 4) - math.floor(of_era / 100) + of_year - 719468
  end
  local shifted = day + 719468
  local era = math.floor(shifted / 146097)
  local of_era = shifted - era * 146097
  local year_of_era = math.floor(
    (of_era - math.floor(of_era / 1460) + math.floor(of_era / 36524) - math.floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year_of_era + math.floor(year_of_era / 4) - math.floor(year_of_era / 100))
  local shifted_month = math.floor((5 * of_year + 2) / 153)
  local month = (shifted_month + 2) % 12 + 1
  local year = year_of_era + era * 400 + (month <= 2 and 1 or 0)
  return days(year, month), month == 12 and days(year + 1, 1) or days(year, month + 1)
end

-- Periods of budgets, with the key of what is spent in the current one and when the next begins.
local function periods()
  local day = math.floor(now / DAY_S)
  local first, following = month_of(day)
  return {
    {'day', root .. ':spent:day:' .. day, (day + 1) * DAY_S},
    {'month', root .. ':spent:month:' .. first, following * DAY_S},
  }
end

-- For each scope, of day and month: limit of its own or false, spent, set aside, when the next one begins.
-- :limits, :reserved and :spent:PERIOD:DAY have tokens by scope: `a` of all, `tTENANT`, `uTENANT NUL USER`.
local function budget_lines(scopes)
  local lines, current = {}, periods()
  for index, scope in ipairs(scopes) do
    local set_aside, line = tonumber(call('HGET', root .. ':reserved', scope) or 0), {}
    for which, period in ipairs(current) do
      local own = call('HGET', root .. ':limits', period[1] .. '\0' .. scope)
      line[which] = {own and tonumber(own), tonumber(call('HGET', period[2], scope) or 0), set_aside, period[3]}
    end
    lines[index] = line
  end
  return lines
end

-- :payers:TENANT has the users of a tenant that ever had a budget of their own, or something of it.
local function note_payer(scope)
  local tenant, user = string.match(scope, '^u(%Z*)%z(.*)$')
  if tenant then call('SADD', root .. ':payers:' .. tenant, user) end
end

-- Add to the sums of a UTC day, in the order of `LedgerLine`. :ledger has the days, :ledger:DAY a line for each key.
local function to_ledger(day, tenant, context, machine, user, sums)
  local key, field = root .. ':ledger:' .. day, table.concat({tenant, context, machine, user}, '\0')
  local packed = call('HGET', key, field)
  local line = packed and cmsgpack.unpack(packed) or {0, 0, 0, 0, 0, 0, 0}
  for column = 1, #line do line[column] = line[column] + (sums[column] or 0) end
  if call('HSET', key, field, cmsgpack.pack(line)) == 1 then call('ZADD', root .. ':ledger', day, day) end
end

-- Stored answers. Under the root:
--   :answer:KEY         prefix, then head (msgpack, see `_Head`), sealed question, sealed body
--   :answers:of:TENANT NUL CONTEXT NUL FINGERPRINT   keys
--   :answers:left       names of those whose version its context has no more
--   :answers:serials    keys by serial
--   :answers:used:TENANT   keys by when they last served
--   :answers:tenants    tenants by when their answer used longest ago was used, or earlier
--   :answers:sums       answers, bytes
--   :answers:serial     the last one
--   :answers:counts:TENANT NUL CONTEXT   ORIGIN:stored, ORIGIN:used, ORIGIN:uses
local function answer(key) return root .. ':answer:' .. key end
local function answers_used(tenant) return root .. ':answers:used:' .. tenant end
local function answer_counts(tenant, name) return root .. ':answers:counts:' .. tenant .. '\0' .. name end
local function answers_of(tenant, name, fingerprint)
  return root .. ':answers:of:' .. tenant .. '\0' .. name .. '\0' .. fingerprint
end

-- Whether it served, tenant, context, fingerprint, origin; nothing when it is not there.
local function answer_head(key)
  local prefix = call('GETRANGE', answer(key), 0, PREFIX_BYTES - 1)
  if prefix == '' then return end
  local used, _, _, _, bytes = struct.unpack(PREFIX, prefix)
  local head = cmsgpack.unpack(call('GETRANGE', answer(key), PREFIX_BYTES, PREFIX_BYTES + bytes - 1))
  return used, head[1], head[2], head[3], head[4]
end

local function forget_answer(key)
  local used, tenant, name, fingerprint = answer_head(key)
  if not used then return end
  call('HINCRBY', root .. ':answers:sums', 'bytes', -call('STRLEN', answer(key)))
  if call('HINCRBY', root .. ':answers:sums', 'answers', -1) == 0 then call('DEL', root .. ':answers:sums') end
  call('UNLINK', answer(key))
  call('ZREM', root .. ':answers:serials', key)
  call('ZREM', answers_used(tenant), key)
  call('SREM', answers_of(tenant, name, fingerprint), key)
  if call('EXISTS', answers_used(tenant)) == 0 then call('ZREM', root .. ':answers:tenants', tenant) end
end

-- Some of those in a set of :answers:of; what is left, which nobody is given any more, is for `sweep`.
local function forget_answers(set)
  local keys = call('SPOP', set, FORGOTTEN_AT_ONCE)
  for _, key in ipairs(keys) do forget_answer(key) end
  if #keys == FORGOTTEN_AT_ONCE then
    call('SADD', root .. ':answers:left', set)
  else
    call('SREM', root .. ':answers:left', set)
  end
end

-- The agenda. Under the root:
--   :agenda            TENANT NUL NAME of contexts, by when they are to be looked at
--   :waits             TENANT NUL NAME -> the budget that has no room for it
--   :waiting:BUDGET    TENANT NUL NAME, by -priority

-- Due at once, before all that only has its time.
local function look_now(tenant, name)
  call('ZADD', root .. ':agenda', 'LT', now - HEADSTART_S, tenant .. '\0' .. name)
end

local function look_at_version(tenant, fingerprint)
  local packed = call('HGET', root .. ':versions:' .. tenant, fingerprint)
  for _, name in ipairs(packed and cmsgpack.unpack(packed)[3] or {}) do look_now(tenant, name) end
end

local function look_no_more(member)
  local budget = call('HGET', root .. ':waits', member)
  if budget then call('ZREM', root .. ':waiting:' .. budget, member) end
  call('HDEL', root .. ':waits', member)
  call('ZREM', root .. ':agenda', member)
end

-- The first of those that wait for this budget.
local function wake(budget, most)
  for _, member in ipairs(call('ZRANGE', root .. ':waiting:' .. budget, 0, most - 1)) do
    call('ZADD', root .. ':agenda', 'XX', 'LT', now - HEADSTART_S, member)
  end
end
