-- End waiting jobs that have not been started before their expiry. The time is judged here.
--
-- A job that a worker holds is left to that worker, which starts nothing that has expired.
--
-- KEYS  1 expiring; 2 delayed; 3 lane; 4 what was handed back to it; 5 parked; then one job per end
-- ARGV  1 group; 2 time to live of an outcome (ms); 3 prefix of a channel's name
--       then per job: hex, outcome, channel ('' for none), notice
-- Returns one number per job: 1 ended, 0 not.
local group, ttl = ARGV[1], ARGV[2]
-- No group: no worker yet. A stranger's entry: no worker's. Else whoever asks may not know: it is held.
local function is_free(err)
  for _, word in ipairs({'NOGROUP', 'stream ID', 'WRONGTYPE'}) do
    if string.find(err, word, 1, true) then return true end
  end
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {}
for i = 6, #KEYS do
  local job, at = KEYS[i], 4 * (i - 5)
  local hex, channel = ARGV[at], ARGV[at + 2]
  local record = redis.pcall('HMGET', job, 's', 'x', 'e') -- an error, if the key is of another type
  local state, entry = record[1], record[3]
  reply[i - 5] = 0
  if (state ~= 'q' and state ~= 'd') or not record[2] then
    redis.call('ZREM', KEYS[1], hex)
  elseif redis.call('ZSCORE', KEYS[1], hex) ~= record[2] then
    redis.call('ZREM', KEYS[1], hex) -- of an earlier run, in another lane
  elseif tonumber(record[2]) <= now then
    local held = false
    if state == 'q' and string.sub(entry or '', 1, 1) == 'p' then
      redis.call('ZREM', KEYS[5], string.sub(entry, 2))
    elseif state == 'q' then
      local stream = KEYS[3]
      if not entry then entry = '' end
      if string.sub(entry, 1, 1) == 'b' then stream, entry = KEYS[4], string.sub(entry, 2) end
      local pending = redis.pcall('XPENDING', stream, group, entry, entry, 1)
      if pending.err then held = not is_free(pending.err) else held = #pending > 0 end
      if not held then redis.pcall('XDEL', stream, entry) end
    else
      redis.call('ZREM', KEYS[2], hex)
    end
    if not held then
      redis.call('HSET', job, 's', 'c', 'o', ARGV[at + 1], 'r', '')
      redis.call('HDEL', job, 'e', 'd')
      redis.call('PEXPIRE', job, ttl)
      redis.call('ZREM', KEYS[1], hex)
      if channel ~= '' then redis.call('PUBLISH', ARGV[3] .. channel, ARGV[at + 3]) end
      reply[i - 5] = 1
    end
  end
end
return reply
