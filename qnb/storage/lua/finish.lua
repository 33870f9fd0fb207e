-- End attempts: outcome and result into the record, lease given up, waiting clients told; one step.
--
-- The attempt number fences stale finishers: an attempt that was recovered meanwhile, or a job that
-- already has an outcome, is left alone. Sending the same outcome twice counts as accepted.
--
-- KEYS  the streams; then one job per attempt; then the logs of those that have one
-- ARGV  1 number of streams; 2 number of attempts; 3 group; 4 time to live of an outcome (ms)
--       5 number of channels; then the channels
--       then per attempt: stream (1-based), entry, attempt, starts, outcome, result,
--       channel (1-based, 0 for none), notice
-- Returns one number per attempt: 1 accepted, 0 refused.
local streams, count, group, ttl, channels = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], ARGV[4], tonumber(ARGV[5])
local current = {}
for i = 1, count do
  current[i] = redis.call('HMGET', KEYS[streams + i], 's', 'a', 'k', 'f')
end
local reply, entries, notices = {}, {}, {}
for i = 1, count do
  local job, at = KEYS[streams + i], 6 + channels + 8 * (i - 1)
  local stream, outcome, channel = ARGV[at], ARGV[at + 4], ARGV[at + 6]
  local state, attempt = current[i][1], current[i][2]
  if state and state ~= 'c' and attempt == ARGV[at + 2] then
    redis.call('PEXPIRE', job, ttl) -- first: a full store refuses a script that begins with HSET, and lets others end
    redis.call('HSET', job, 's', 'c', 'n', ARGV[at + 3], 'o', outcome, 'r', ARGV[at + 5])
    if current[i][3] or current[i][4] then redis.call('HDEL', job, 'k', 'f') end
    if channel ~= '0' then
      local list = notices[channel] or {}
      list[#list + 1] = ARGV[at + 7]
      notices[channel] = list
    end
    reply[i] = 1
  elseif state == 'c' and redis.call('HGET', job, 'o') == outcome then
    reply[i] = 1
  else
    reply[i] = 0
  end
  -- a refused attempt holds no lease: its entry was removed when the job was recovered or ended
  local ids = entries[stream] or {}
  ids[#ids + 1] = ARGV[at + 1]
  entries[stream] = ids
end
for stream, ids in pairs(entries) do
  redis.call('XACK', KEYS[tonumber(stream)], group, unpack(ids))
  redis.call('XDEL', KEYS[tonumber(stream)], unpack(ids))
end
for i = streams + count + 1, #KEYS do
  redis.call('PEXPIRE', KEYS[i], ttl)
end
for channel, list in pairs(notices) do
  redis.call('PUBLISH', ARGV[5 + tonumber(channel)], table.concat(list))
end
return reply
