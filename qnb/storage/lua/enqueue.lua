-- Store new jobs; put each in its lane, or among the delayed ones if its time has not come.
--
-- A job whose id is already waiting or running is left as it is, and so is a repeated send of the
-- very same call (its spec carries a nonce); a complete one is replaced by a fresh run, whose attempt
-- numbers go on from the old one's: a worker that still holds that one stays fenced. Numbers are
-- checked before anything is written: what the server cannot count would stop it half-way through.
-- What a stranger wrote in the place of one counts as none. Functions that the jobs bring are kept
-- for so long at least; none is shortened.
--
-- KEYS  1 jobs index; then per lane: lane, delayed, expiring; then one job per call, no job twice;
--       then the functions
-- ARGV  1 number of lanes; 2 time to live of an unfinished job (ms)
--       3 most bytes of a call that ride in the lane's entry; 4 control channel
--       5 1 to leave alone what is complete, too; else 0
--       6 number of functions; then per function: time to live (ms)
--       then per job: lane (1-based), job hex, spec, call,
--       due: '' now, '+n' in n ms, '@n' at epoch ms n; expiry: '' never, else n ms from now;
--       each n whole, and at most 10^14: 3,000 years
-- Returns one number per job: its enqueue time (ms), later than that of the run before it if there
-- was one, or 0 if it was there already; then one per function: 1 kept, 0 it is not stored.
local function whole(text, most)
  local n = string.match(text, '^%d+$') and tonumber(text)
  return n and n <= most and n
end
local index, ever = KEYS[1], 1e14
local lanes, ttl, inline, functions = whole(ARGV[1], 1e6), whole(ARGV[2], ever), whole(ARGV[3], ever), whole(ARGV[6], 1e6)
if not (lanes and ttl and inline and functions) then return redis.error_reply('ERR a number of lanes or functions, time to live or size is none') end
local first, base = 1 + 3 * lanes, 6 + functions
local count = #KEYS - first - functions
if count < 0 or #ARGV ~= base + 6 * count then return redis.error_reply('ERR KEYS and ARGV do not fit each other') end
local lane_of = {}
for i = 1, lanes do lane_of[tostring(i)] = 3 * i - 1 end
for i = 1, count do
  local at = base + 6 * i
  local when, expiry = ARGV[at - 1], ARGV[at]
  local due_is_sound = when == '' or (string.find(when, '^[+@]') and whole(string.sub(when, 2), ever))
  if not (lane_of[ARGV[at - 5]] and due_is_sound and (expiry == '' or whole(expiry, ever))) then
    return redis.error_reply('ERR job ' .. i .. ': its lane, due time or expiry is no number up to 10^14; nothing was stored')
  end
end
local known = {}
for i = 1, count do
  local state = redis.pcall('HGET', KEYS[first + i], 's')
  if state then
    known[i] = redis.pcall('HMGET', KEYS[first + i], 's', 'm', 'a', 't')
    if known[i].err and not string.find(known[i].err, 'WRONGTYPE', 1, true) then return known[i] end
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local now_text = string.format('%.0f', now)
local reply, born, wake = {}, {}, nil
for i = 1, count do
  local job, at, old = KEYS[first + i], base + 6 * i, known[i]
  local lane, hex, spec, call, when, expiry = lane_of[ARGV[at - 5]], ARGV[at - 4], ARGV[at - 3], ARGV[at - 2], ARGV[at - 1], ARGV[at]
  local state = old and old[1]
  if state and (state ~= 'c' or old[2] == spec or ARGV[5] == '1') then
    reply[i] = 0
  else
    local attempt, text = '1', now_text
    reply[i] = now
    if old then
      redis.call('DEL', job)
      attempt = string.format('%.0f', (whole(old[3] or '', ever) or 0) + 1)
      reply[i] = math.max(now, (whole(old[4] or '', ever) or 0) + 1)
      text = string.format('%.0f', reply[i])
    end
    local due, expires = now, nil
    if when ~= '' then
      due = tonumber(string.sub(when, 2))
      if string.sub(when, 1, 1) == '+' then due = now + due end
    end
    if expiry ~= '' then
      local ends = now + tonumber(expiry)
      expires = string.format('%.0f', ends)
      redis.call('ZADD', KEYS[lane + 2], expires, hex)
      redis.call('HSET', job, 'x', expires)
      wake = math.min(wake or ends, ends)
    end
    if due > now then
      local due_text = string.format('%.0f', due)
      redis.call('ZADD', KEYS[lane + 1], due_text, hex)
      redis.call('HSET', job, 'm', spec, 'p', call, 't', text, 'a', attempt, 'n', '0', 's', 'd', 'd', due_text)
      redis.call('PEXPIRE', job, string.format('%.0f', due - now + ttl))
      wake = math.min(wake or due, due)
    else
      local entry = {'a', attempt, 't', text, 'm', spec}
      if #call <= inline then
        entry[7], entry[8] = 'p', call
      end
      if expires then
        entry[#entry + 1] = 'x'
        entry[#entry + 1] = expires
      end
      local id = redis.call('XADD', KEYS[lane], '*', unpack(entry))
      redis.call('HSET', job, 'm', spec, 'p', call, 't', text, 'a', attempt, 'n', '0', 's', 'q', 'e', id)
      redis.call('PEXPIRE', job, ARGV[2])
    end
    born[#born + 1] = text
    born[#born + 1] = hex
  end
end
for i = 1, #born, 1000 do
  redis.call('ZADD', index, unpack(born, i, math.min(i + 999, #born)))
end
for i = 1, functions do
  local fn, lives = KEYS[first + count + i], ARGV[6 + i]
  local left = redis.call('PTTL', fn)
  if left >= 0 and left < tonumber(lives) then redis.call('PEXPIRE', fn, lives) end
  reply[count + i] = left == -2 and 0 or 1
end
if wake then redis.call('PUBLISH', ARGV[4], string.format('w%.0f', wake)) end
return reply
