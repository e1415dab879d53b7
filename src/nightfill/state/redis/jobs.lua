-- The job queue: what its programs share, then the programs. Under the root:
--   :job               last id
--   :jobs              hash: id -> record (below)
--   :state:KIND:STATE  sorted set of ids by -priority, but for those that are leased
--   :open:KIND         TARGET NUL ID, one score: finds a target, and targets by prefix, of what is not done or cancelled
--   :failing           ids of what failed and is tried again
--   :ended             ids of what is done or cancelled, by when
--   :queue:SIZE:CLASS NUL TENANT   what may be leased now, by -priority; CLASS is KIND NUL NEEDS
--   :turns:CLASS       tenants with such queues, by the start tag of their next lease
--   :classes           classes with such a tenant
--   :later:KIND, :leases:KIND   ids by when they may be leased, and by when the lease ends, in whole milliseconds
--   :workers, :held:WORKER      who may hold leases; hash: call that leased -> id
--   :finish            of fair queueing: tenant -> tag at which its last lease ends, '' -> start tag of the newest lease;
--                      whole tokens, for small sorted sets are slow with fractions
--   :tokens, :outcomes:KIND     kind -> tokens still to be computed; outcome -> number
--   :weights:DIGEST    tenant -> weight
-- Budgets and ledger: see common.

local ID, KIND, TARGET, TENANT, LABEL, PRIORITY, STATE, ATTEMPTS, FAILURES, LOST = 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
local NOT_BEFORE, DONE, TOTAL, WORKER, EXPIRES, ERROR, CREATED, UPDATED, NOTE = 11, 12, 13, 14, 15, 16, 17, 18, 19
local USER, NEEDS, RESERVED = 20, 21, 22
-- Not shown: tokens kept; what of the lease's work is charged, and where it was done; the calls that leased and ended
-- it; where it waits; what was to be set aside for it.
local KEPT, CHARGED_TOKENS, CHARGED_S, MACHINE, LEASED_BY, ENDED_BY, PLACE, ASKED_TOKENS = 23, 24, 25, 26, 27, 28, 29, 30

local MAX_LOST = 20
local WOKEN = 8  -- as `state.agenda` has it
local SWEPT = 100  -- late or expired jobs brought back in one step
local LOOKED = 1000  -- jobs, or tenants, passed by in one step because they are not what is wanted
local SIZES = {8192, 32768, 131072}  -- longest of each class but the last; what does not fit is mostly not looked at
local LENGTHS = {'1', '2', '3', '4'}  -- names of these classes; numbers are slow to write

local JOBS = root .. ':jobs'
local before = {}  -- record -> tokens still to be computed when it was read
local failed = {}  -- record -> whether it counted as failing then
local names = {}  -- record -> its id as text

local function of_state(job) return root .. ':state:' .. job[KIND] .. ':' .. job[STATE] end
local function size(tokens)
  for index, most in ipairs(SIZES) do
    if tokens <= most then return index end
  end
  return #SIZES + 1
end
local function class_of(job) return job[KIND] .. '\0' .. job[NEEDS] end
local function turns(class) return root .. ':turns:' .. class end
local function queue(class, length, tenant)
  return root .. ':queue:' .. LENGTHS[length] .. ':' .. class .. '\0' .. tenant
end
local function queue_of(job) return queue(class_of(job), size(job[TOTAL]), job[TENANT]) end
local function id_of(job)
  names[job] = names[job] or string.format('%d', job[ID])
  return names[job]
end
-- Ids of one length, so that the older of equals comes first; the length, so that `lease` need not read the record.
local function member(job) return string.format('%015d %d', job[ID], job[TOTAL]) end
local function padded(id) return string.format('%015d', id) end
local function unfinished(job) return job[STATE] == 'queued' or job[STATE] == 'leased' end
local function left(job) return unfinished(job) and math.max(job[TOTAL] - job[DONE], 0) or 0 end

local function fails(job) return unfinished(job) and job[FAILURES] > 0 end

local function load(id)
  local packed = call('HGET', JOBS, id)
  if not packed then return nil end
  local job = cmsgpack.unpack(packed)
  before[job], failed[job] = left(job), fails(job)
  return job
end

local function save(job, updated)
  job[UPDATED] = updated or now
  local more = left(job) - (before[job] or 0)
  if more ~= 0 then call('HINCRBY', root .. ':tokens', job[KIND], more) end
  before[job] = left(job)
  if fails(job) ~= (failed[job] or false) then
    failed[job] = fails(job)
    call(failed[job] and 'SADD' or 'SREM', root .. ':failing', id_of(job))
  end
  local packed = cmsgpack.pack(job)
  call('HSET', JOBS, id_of(job), packed)
  return packed
end

-- Change the state and its index.
local function become(job, state)
  if job[STATE] and job[STATE] ~= 'leased' then call('ZREM', of_state(job), padded(job[ID])) end
  job[STATE] = state
  if state ~= 'leased' then call('ZADD', of_state(job), -job[PRIORITY], padded(job[ID])) end
  if state == 'done' or state == 'cancelled' then
    call('ZREM', root .. ':open:' .. job[KIND], job[TARGET] .. '\0' .. id_of(job))
    call('ZADD', root .. ':ended', now, id_of(job))
  end
end

-- Out of the queue at `key`, where it is `named`.
local function unqueue(job, key, named)
  call('ZREM', key, named)
  if call('EXISTS', key) == 1 then return end
  local class, tenant = class_of(job), job[TENANT]
  for length in ipairs(LENGTHS) do
    if call('EXISTS', queue(class, length, tenant)) == 1 then return end
  end
  call('ZREM', turns(class), tenant)
  if call('EXISTS', turns(class)) == 0 then call('SREM', root .. ':classes', class) end
end

-- Out of where it waits.
local function leave(job)
  if job[PLACE] == 'queue' then
    unqueue(job, queue_of(job), member(job))
  elseif job[PLACE] ~= '' then
    call('ZREM', root .. ':' .. job[PLACE] .. ':' .. job[KIND], id_of(job))
  end
  job[PLACE] = ''
end

local function to_queue(job)
  leave(job)
  local class = class_of(job)
  call('ZADD', queue_of(job), -job[PRIORITY], member(job))
  if not call('ZSCORE', turns(class), job[TENANT]) then
    local start
    for _, other in ipairs(call('SMEMBERS', root .. ':classes')) do
      start = start or call('ZSCORE', turns(other), job[TENANT])
    end
    -- Who asked for nothing meanwhile begins now, and does not make up for it.
    start = tonumber(start or math.max(tonumber(call('HGET', root .. ':finish', job[TENANT]) or 0),
      tonumber(call('HGET', root .. ':finish', '') or 0)))
    call('ZADD', turns(class), start, job[TENANT])
    call('SADD', root .. ':classes', class)
  end
  job[PLACE] = 'queue'
end

local function wait_until(job, place, at)
  leave(job)
  call('ZADD', root .. ':' .. place .. ':' .. job[KIND], math.floor(at * 1000), id_of(job))
  job[PLACE] = place
end

-- No lease any more; the job goes on.
local function unhold(job)
  call('HDEL', root .. ':held:' .. job[WORKER], job[LEASED_BY])
  job[WORKER], job[EXPIRES] = '', 0
end

local function scopes(job)
  local paying = {'a', 't' .. job[TENANT]}
  if job[USER] ~= '' then paying[3] = 'u' .. job[TENANT] .. '\0' .. job[USER] end
  return paying
end

-- Set aside for those who pay, or give back when negative.
local function reserve(job, tokens, paying)
  if tokens == 0 then return end
  local sums, more = root .. ':reserved', string.format('%d', tokens)
  for _, scope in ipairs(paying) do
    local sum = call('HINCRBY', sums, scope, more)
    if sum == 0 then call('HDEL', sums, scope) end
    if sum == tokens then note_payer(scope) end
  end
  job[RESERVED] = job[RESERVED] + tokens
end

-- The budgets as they stand, if one of them has less left than `tokens`. `defaults`: limits of day and month, or false,
-- for each scope.
local function refusal(job, tokens, defaults)
  local paying = scopes(job)
  local lines = budget_lines(paying)
  for index = 1, #paying do
    for which = 1, 2 do
      local line = lines[index][which]
      local limit = line[1] or defaults[index][which]
      if limit and math.max(0, limit - line[2] - line[3]) < tokens then return {'spent', cmsgpack.pack(lines)} end
    end
  end
end

-- Charge what the lease computed since it last told; `work` is tokens, seconds, machine, in all.
-- `keep`: some of what is set aside is still needed; else all of it returns in the end.
local function charge(job, work, fills, keep)
  if work[3] ~= '' then job[MACHINE] = work[3] end
  local tokens = math.max(work[1] - job[CHARGED_TOKENS], 0)
  local seconds = math.max(work[2] - job[CHARGED_S], 0)
  job[CHARGED_TOKENS], job[CHARGED_S] = job[CHARGED_TOKENS] + tokens, job[CHARGED_S] + seconds
  if tokens > 0 then
    local paying, more = scopes(job), string.format('%d', tokens)
    for _, period in ipairs(periods()) do
      for _, scope in ipairs(paying) do
        if call('HINCRBY', period[2], scope, more) == tokens then
          if scope == 'a' then call('EXPIRE', period[2], math.ceil(period[3] - now) + DAY_S) end
          if period[1] == 'month' then note_payer(scope) end  -- of the day, it is the month's first one or noted
        end
      end
    end
    if keep then reserve(job, -math.min(tokens, job[RESERVED]), paying) end
  end
  if tokens > 0 or seconds > 0 or fills > 0 then
    to_ledger(math.floor(now / DAY_S), job[TENANT], job[LABEL], job[MACHINE], job[USER], {tokens, seconds, fills})
  end
end

-- Not to be done any more.
local function finish(job, state)
  leave(job)
  if job[WORKER] ~= '' then unhold(job) end
  if job[RESERVED] > 0 then
    local paying, waiting = scopes(job), {}
    reserve(job, -job[RESERVED], paying)
    for index, scope in ipairs(paying) do waiting[index] = root .. ':waiting:' .. scope end
    if call('EXISTS', unpack(waiting)) > 0 then
      for _, scope in ipairs(paying) do wake(scope, WOKEN) end
    end
  end
  become(job, state)
  if job[KIND] == 'fill' and state ~= 'done' then
    look_at_version(job[TENANT], string.sub(job[TARGET], #job[TENANT] + 2, #job[TENANT] + 65))
  end
end

-- Queued without a lease; to be leased at once, or after so long.
local function again(job, in_s)
  leave(job)
  if job[WORKER] ~= '' then unhold(job) end
  become(job, 'queued')
  job[NOT_BEFORE] = in_s and now + in_s or 0
  if job[NOT_BEFORE] > now then wait_until(job, 'later', job[NOT_BEFORE]) else to_queue(job) end
end

-- The job, if this lease still has it.
local function held(id, worker, fence)
  local job = load(id)
  if job and job[STATE] == 'leased' and job[ATTEMPTS] == fence and job[WORKER] == worker then return job end
end

-- complete, release and fail
local function ending(act, fills, keep)
  local id, worker, fence, nonce, work = unpack(args)
  local job = held(id, worker, fence)
  if not job then
    job = load(id)
    -- The answer to the same call may have been lost on its way.
    return {job and job[ATTEMPTS] == fence and job[ENDED_BY] == nonce and 'job' or 'lost'}
  end
  charge(job, work, job[KIND] == 'fill' and fills or 0, keep)
  job[ENDED_BY] = nonce
  act(job)
  save(job)
  return {'job'}
end

-- How many jobs of a kind are not done, dead or cancelled.
local function number(kind) return call('ZCARD', root .. ':open:' .. kind) - call('ZCARD', root .. ':state:' .. kind .. ':dead') end

-- Whether the bound of these is reached.
local function crowded(kinds, most)
  local open = 0
  for _, kind in ipairs(kinds) do open = open + number(kind) end
  return open >= most
end

-- Its worker fell silent.
local function lose(job)
  job[LOST] = job[LOST] + 1
  if job[LOST] < MAX_LOST then return true end
  job[ERROR] = MAX_LOST .. ' workers in a row fell silent while working on it'
  finish(job, 'dead')
  return false
end

local function forget(job)
  call('ZREM', of_state(job), padded(job[ID]))
  call('ZREM', root .. ':open:' .. job[KIND], job[TARGET] .. '\0' .. id_of(job))
  call('ZREM', root .. ':ended', id_of(job))
  call('HDEL', JOBS, id_of(job))
end

--- enqueue
local function find(kind, target)
  local found = call('ZRANGEBYLEX', root .. ':open:' .. kind, '[' .. target .. '\0', '(' .. target .. '\1', 'LIMIT', 0, 1)
  return found[1] and load(tonumber(string.sub(found[1], #target + 2)))
end

local kind, target, tenant, label, priority, total, user, needs, wanted, asked, most, kinds, defaults = unpack(args)
local job = find(kind, target)
if job then
  if job[STATE] ~= 'dead' and job[PRIORITY] ~= asked and job[PRIORITY] ~= priority then
    job[PRIORITY] = priority
    if job[PLACE] == 'queue' then call('ZADD', queue_of(job), -priority, member(job)) end
    if job[STATE] == 'queued' then call('ZADD', of_state(job), -priority, padded(job[ID])) end
    save(job, job[UPDATED])
  end
  return {'job', cmsgpack.pack(job)}
end
if crowded(kinds, most) then return {'full'} end
job = {0, kind, target, tenant, label, priority, false, 0, 0, 0, 0, 0, total, '', 0, '', now, now, '', user, needs, 0,
  0, 0, 0, '', '', '', '', wanted}
local refused = wanted > 0 and refusal(job, wanted, defaults)
if refused then return refused end
job[ID] = call('INCR', root .. ':job')
call('ZADD', root .. ':open:' .. kind, 0, target .. '\0' .. id_of(job))
reserve(job, wanted, scopes(job))
become(job, 'queued')
to_queue(job)
return {'job', save(job)}

--- bring_back
-- What is late or expired may be leased from now on.
local kind = args[1]
for _, place in ipairs({'later', 'leases'}) do
  local due = call('ZRANGEBYSCORE', root .. ':' .. place .. ':' .. kind, '-inf', math.floor(now * 1000), 'LIMIT', 0, SWEPT)
  for _, id in ipairs(due) do
    local job = load(id)
    if place == 'later' or job[LOST] + 1 < MAX_LOST then
      to_queue(job)  -- until somebody takes it, a late renewal holds it
      save(job, job[UPDATED])
    else
      lose(job)
      save(job)
    end
  end
end

--- hold_on
-- The lease that was given to the same call before, whose answer may have been lost on its way.
local id, lease_s = unpack(args)
local job = load(id)
job[EXPIRES] = now + lease_s
wait_until(job, 'leases', job[EXPIRES])
return {'job', save(job)}

--- lease
-- The first job of a queue that is short enough and of rank, with its score.
local function first_fit(key, most, rank)
  local from, to = 0, 9
  while from < LOOKED do
    local found = call('ZRANGE', key, from, to, 'WITHSCORES')
    for index = 1, #found, 2 do
      local score = tonumber(found[index + 1])
      if rank and score > -rank then return end
      if tonumber(string.match(found[index], ' (%d+)$')) <= most then return found[index], score end
    end
    if #found < 2 * (to - from + 1) then return end
    from, to = to + 1, LOOKED
  end
end

-- A tenant's first job of these classes: its queue, and its member there.
local function best_of(tenant, classes, most, rank)
  local longest, queue, best, score = most and size(most) or #LENGTHS
  for _, class in ipairs(classes) do
    local head, tail = root .. ':queue:', ':' .. class .. '\0' .. tenant
    for length = 1, longest do
      local key, found, at = head .. LENGTHS[length] .. tail
      if length == longest and most and SIZES[length] ~= most then
        found, at = first_fit(key, most, rank)  -- among those of about its own length alone are some too long
      else
        local first = call('ZRANGE', key, '0', '0', 'WITHSCORES')
        found, at = first[1], first[1] and tonumber(first[2])
        if found and rank and at > -rank then found = nil end
      end
      if found and (not best or at < score or (at == score and found < best)) then
        queue, best, score = key, found, at
      end
    end
  end
  return queue, best
end

-- The job whose turn it is, of these classes: its queue, its member there, and the start tag of its lease.
local function next_job(classes, most, rank)
  local passed, places = {}, {}
  for _ = 1, LOOKED do
    local tenant, tag
    for _, class in ipairs(classes) do
      local head
      repeat
        head = call('ZRANGE', turns(class), places[class] or '0', places[class] or '0', 'WITHSCORES')
        local seen = head[1] and passed[head[1]]
        if seen then places[class] = (places[class] or 0) + 1 end
      until not seen
      if head[1] then
        local at = tonumber(head[2])
        if not tag or at < tag or (at == tag and head[1] < tenant) then tenant, tag = head[1], at end
      end
    end
    if not tenant then return end
    local queue, best = best_of(tenant, classes, most, rank)
    if best then return queue, best, tag end
    passed[tenant] = true
  end
end

-- The tenant's next lease begins where this one ends.
local function take_turn(job, tag, weights, classes)
  local finishes = root .. ':finish'
  local virtual = math.max(tag, tonumber(call('HGET', finishes, '') or 0))
  local weight = weights ~= '' and tonumber(call('HGET', root .. ':weights:' .. weights, job[TENANT]) or 1) or 1
  local length = math.max(math.floor((job[TOTAL] - job[KEPT]) / weight + 0.5), 1)
  local finish = string.format('%.0f', virtual + length)
  call('HSET', finishes, '', virtual, job[TENANT], finish)
  for _, class in ipairs(classes) do call('ZADD', turns(class), 'XX', finish, job[TENANT]) end
end

local worker, kinds, lease_s, needs, most, lowest, weights, nonce = unpack(args)
if weights ~= '' and call('EXISTS', root .. ':weights:' .. weights) == 0 then return {'weights'} end
local holds = root .. ':held:' .. worker
local leased = call('HGET', holds, nonce)
if leased then return hold_on(leased, lease_s) end
local wanted, classes, millis = {}, {}, string.format('%.0f', math.floor(now * 1000))
for _, kind in ipairs(kinds) do
  local due = call('ZCOUNT', root .. ':later:' .. kind, '-inf', millis)
  if due + call('ZCOUNT', root .. ':leases:' .. kind, '-inf', millis) > 0 then bring_back(kind) end
  wanted[kind] = true
  wanted[kind .. '\0'] = true
  for _, need in ipairs(needs or {}) do wanted[kind .. '\0' .. need] = true end
end
local all = call('SMEMBERS', root .. ':classes')
for _, class in ipairs(all) do
  if wanted[class] or (not needs and wanted[string.match(class, '^%Z*')]) then classes[#classes + 1] = class end
end
local queue, found, tag = next_job(classes, most, lowest)
if not found then return {'none'} end
-- What follows does what `leave`, `become`, `wait_until` and `save` do, knowing the names and what cannot have changed.
local id = string.match(found, '^0*(%d+)')
local job = cmsgpack.unpack(call('HGET', JOBS, id))
unqueue(job, queue, found)
take_turn(job, tag, weights, all)
if job[STATE] == 'leased' then
  job[LOST] = job[LOST] + 1  -- its worker fell silent, and not too many before
  unhold(job)
else
  call('ZREM', of_state(job), string.match(found, '^%d+'))
  job[STATE] = 'leased'
end
job[ATTEMPTS], job[WORKER], job[EXPIRES] = job[ATTEMPTS] + 1, worker, now + lease_s
job[CHARGED_TOKENS], job[CHARGED_S], job[MACHINE], job[LEASED_BY], job[ENDED_BY] = 0, 0, '', nonce, ''
job[PLACE], job[UPDATED] = 'leases', now
call('ZADD', root .. ':leases:' .. job[KIND], math.floor(job[EXPIRES] * 1000), id)
call('HSET', holds, nonce, id)
call('SADD', root .. ':workers', worker)
local packed = cmsgpack.pack(job)
call('HSET', JOBS, id, packed)
return {'job', packed}

--- weigh
local digest, weights = unpack(args)
local key = root .. ':weights:' .. digest
for tenant, weight in pairs(weights) do call('HSET', key, tenant, weight) end
call('EXPIRE', key, 7 * DAY_S)

--- renew
local id, worker, fence, lease_s, done, total, kept, work = unpack(args)
local job = held(id, worker, fence)
if not job then return {'lost'} end
leave(job)
charge(job, work, 0, true)
if kept > job[KEPT] then job[KEPT], job[LOST], job[FAILURES] = kept, 0, 0 end
job[DONE], job[TOTAL], job[EXPIRES] = done, total, now + lease_s
wait_until(job, 'leases', job[EXPIRES])
return {'job', save(job)}

--- complete
return ending(function(job)
  local outcome, note = args[6], args[7]
  job[ERROR], job[NOTE], job[DONE] = '', note, math.max(job[DONE], job[TOTAL])
  finish(job, 'done')
  if outcome ~= '' then call('HINCRBY', root .. ':outcomes:' .. job[KIND], outcome, 1) end
end, 1, false)

--- release
return ending(function(job) again(job) end, 0, true)

--- fail
local message, retry_in_s = args[6], args[7]
return ending(function(job)
  job[FAILURES], job[ERROR] = job[FAILURES] + 1, message
  if retry_in_s then again(job, retry_in_s) else finish(job, 'dead') end
end, 0, retry_in_s)

--- count
call('HINCRBY', root .. ':outcomes:' .. args[1], args[2], 1)

--- cancel
local job = load(args[1])
if not job or not unfinished(job) then return 0 end
finish(job, 'cancelled')
save(job)
return 1

--- cancel_target
local kind, prefix = unpack(args)
local cancelled = 0
for _, found in ipairs(call('ZRANGEBYLEX', root .. ':open:' .. kind, '[' .. prefix, '(' .. prefix .. '\255')) do
  local job = load(string.match(found, '%z(%d+)$'))
  if job[STATE] == 'dead' then
    forget(job)
  else
    finish(job, 'cancelled')
    save(job)
    cancelled = cancelled + 1
  end
end
return cancelled

--- retry
local id, most, kinds, defaults = unpack(args)
local job = load(id)
if not job or job[STATE] ~= 'dead' then return {'none'} end
if crowded(kinds, most) then return {'full'} end
local wanted = job[ASKED_TOKENS]
if job[TOTAL] > 0 then wanted = math.min(wanted, math.max(job[TOTAL] - job[KEPT], 0)) end
local refused = wanted > 0 and refusal(job, wanted, defaults)
if refused then return {'spent', refused[2], wanted} end
reserve(job, wanted, scopes(job))
job[FAILURES], job[LOST], job[ERROR] = 0, 0, ''
again(job)
save(job)
return {'job'}

--- reclaim
local ids = call('HVALS', root .. ':held:' .. args[1])
for _, id in ipairs(ids) do
  local job = load(id)
  if lose(job) then again(job) end
  save(job)
end
return #ids

--- holders
local found = {}
for _, worker in ipairs(call('SMEMBERS', root .. ':workers')) do
  if call('EXISTS', root .. ':held:' .. worker) == 1 then
    found[#found + 1] = worker
  else
    call('SREM', root .. ':workers', worker)
  end
end
return found

--- depth
local time = string.format('%.0f', math.floor(now * 1000))
local due, later, leased, tokens = 0, 0, 0, 0
for _, kind in ipairs(args[1]) do
  local function count(place, from, to) return call('ZCOUNT', root .. ':' .. place .. ':' .. kind, from, to) end
  local function all(key) return call('ZCARD', root .. ':' .. key) end
  local waiting = all('later:' .. kind) + all('leases:' .. kind)
  due = due + number(kind) - waiting
    + count('later', '-inf', time) + count('leases', '-inf', time)
  later = later + count('later', '(' .. time, '+inf')
  leased = leased + count('leases', '(' .. time, '+inf')
  tokens = tokens + tonumber(call('HGET', root .. ':tokens', kind) or 0)
end
return {due, later, leased, tokens}

--- trouble
local dead = 0
for _, kind in ipairs(args[1]) do dead = dead + call('ZCARD', root .. ':state:' .. kind .. ':dead') end
return {call('SCARD', root .. ':failing'), dead}

--- ids
-- By descending priority, then by age.

local kinds, states, limit = unpack(args)
local all = {}
for _, kind in ipairs(kinds) do
  for _, state in ipairs(states) do
    local found = call('ZRANGE', root .. ':state:' .. kind .. ':' .. state, 0, limit - 1, 'WITHSCORES')
    for index = 1, #found, 2 do all[#all + 1] = {tonumber(found[index + 1]), found[index]} end
    for _, worker in ipairs(state == 'leased' and kind == kinds[1] and call('SMEMBERS', root .. ':workers') or {}) do
      for _, id in ipairs(call('HVALS', root .. ':held:' .. worker)) do
        all[#all + 1] = {-load(id)[PRIORITY], padded(tonumber(id))}
      end
    end
  end
end
table.sort(all, function(a, b) return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2]) end)
local ids = {}
for index = 1, math.min(limit, #all) do ids[index] = tonumber(all[index][2]) end
return ids

--- prune
local older_than_s, most = unpack(args)
local old = call('ZRANGEBYSCORE', root .. ':ended', '-inf', '(' .. string.format('%.17g', now - older_than_s),
  'LIMIT', 0, most)
for _, id in ipairs(old) do forget(load(id)) end
return #old
