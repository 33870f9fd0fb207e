-- Store new jobs; put each in its lane, or among the delayed ones if its time has not come.
--
-- A job whose id is already waiting or running is left as it is, and so is a repeated send of the
-- very same call (its spec carries a nonce); a complete one is replaced by a fresh run, whose attempt
-- numbers go on from the old one's: a worker that still holds that one stays fenced. Numbers are
-- checked before anything is written: what the server cannot count would stop it half-way through.
-- What a stranger wrote in the place of one counts as none.
--
-- KEYS  1 jobs index; then per lane: lane, delayed, expiring; then one job per call, no job twice
-- ARGV  1 number of lanes; 2 time to live of an unfinished job (ms)
--       3 most bytes of a call that ride in the lane's entry; 4 control channel
--       5 1 to leave alone what is complete, too; else 0
--       then per job: lane (1-based), job hex, spec, call,
--       due: '' now, '+n' in n ms, '@n' at epoch ms n; expiry: '' never, else n ms from now;
--       each n whole, and at most 10^14: 3,000 years
-- Returns one number per job: its enqueue time (ms), later than that of the run before it if there
-- was one, or 0 if it was there already.
local function whole(text, most)
  local n = string.match(text, '^%d+$') and tonumber(text)
  return n and n <= most and n
end
local index, ever = KEYS[1], 1e14
local lanes, ttl, inline = whole(ARGV[1], 1e6), whole(ARGV[2], ever), whole(ARGV[3], ever)
if not (lanes and ttl and inline) then return redis.error_reply('ERR lanes, time to live or size is no number') end
local first = 1 + 3 * lanes
local count = #KEYS - first
if count < 0 or #ARGV ~= 5 + 6 * count then return redis.error_reply('ERR KEYS and ARGV do not fit each other') end
for i = 1, count do
  local at = 6 * i
  local lane, when, expiry = whole(ARGV[at], lanes), ARGV[at + 4], ARGV[at + 5]
  local due_is_sound = when == '' or (string.find(when, '^[+@]') and whole(string.sub(when, 2), ever))
  if not (lane and lane > 0 and due_is_sound and (expiry == '' or whole(expiry, ever))) then
    return redis.error_reply('ERR job ' .. i .. ': its lane, due time or expiry is no number up to 10^14; nothing was stored')
  end
end
local known = {}
for i = 1, count do
  known[i] = redis.pcall('HMGET', KEYS[first + i], 's', 'm', 'a', 't')
  if known[i].err and not string.find(known[i].err, 'WRONGTYPE', 1, true) then return known[i] end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply, wake = {}, nil
for i = 1, count do
  local job, at = KEYS[first + i], 6 * i
  local lane, hex, spec, call, when, expiry = 3 * ARGV[at] - 1, ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5]
  local state = known[i][1]
  if state and (state ~= 'c' or known[i][2] == spec or ARGV[5] == '1') then
    reply[i] = 0
  else
    if state or known[i].err then redis.call('DEL', job) end
    local attempt = (whole(known[i][3] or '', ever) or 0) + 1
    local born = math.max(now, (whole(known[i][4] or '', ever) or 0) + 1)
    local text = string.format('%.0f', born)
    local due, expires = now, nil
    if when ~= '' then
      due = tonumber(string.sub(when, 2))
      if string.sub(when, 1, 1) == '+' then due = now + due end
    end
    local row = {'m', spec, 'p', call, 't', text, 'a', attempt, 'n', 0}
    if expiry ~= '' then
      expires = now + tonumber(expiry)
      row[#row + 1] = 'x'
      row[#row + 1] = string.format('%.0f', expires)
      redis.call('ZADD', KEYS[lane + 2], expires, hex)
      wake = math.min(wake or expires, expires)
    end
    if due > now then
      redis.call('ZADD', KEYS[lane + 1], due, hex)
      wake = math.min(wake or due, due)
      row[#row + 1] = 's'
      row[#row + 1] = 'd'
      row[#row + 1] = 'd'
      row[#row + 1] = string.format('%.0f', due)
    else
      local entry = {'j', hex, 'a', attempt, 'n', 0, 'c', 0, 't', text, 'm', spec}
      if #call <= inline then
        entry[#entry + 1] = 'p'
        entry[#entry + 1] = call
      end
      if expires then
        entry[#entry + 1] = 'x'
        entry[#entry + 1] = string.format('%.0f', expires)
      end
      row[#row + 1] = 's'
      row[#row + 1] = 'q'
      row[#row + 1] = 'e'
      row[#row + 1] = redis.call('XADD', KEYS[lane], '*', unpack(entry))
    end
    redis.call('HSET', job, unpack(row))
    redis.call('PEXPIRE', job, math.max(ttl, due - now + ttl))
    redis.call('ZADD', index, born, hex)
    reply[i] = born
  end
end
if wake then redis.call('PUBLISH', ARGV[4], string.format('w%.0f', wake)) end
return reply
