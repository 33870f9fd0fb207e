-- Store jobs that are complete from the start: their result is that of another job.
--
-- One whose id is known already is left as it is.
--
-- KEYS  1 jobs index; then the jobs
-- ARGV  1 time to live of an outcome (ms); 2 channel, '' for none
--       then per job: hex, spec, call, outcome (with its times), result, notice
-- Returns one number per job: its enqueue time (ms), or 0 if it was there already.
local index, ttl, channel = KEYS[1], ARGV[1], ARGV[2]
if #ARGV ~= 2 + 6 * (#KEYS - 1) then return redis.error_reply('ERR KEYS and ARGV do not fit each other') end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local reply, notices = {}, {}
for i = 1, #KEYS - 1 do
  local job, at = KEYS[i + 1], 6 * i - 3
  if redis.call('EXISTS', job) == 1 then
    reply[i] = 0
  else
    redis.call('ZADD', index, now, ARGV[at])
    redis.call('HSET', job, 'm', ARGV[at + 1], 'p', ARGV[at + 2], 't', now, 's', 'c', 'a', 0, 'n', 0,
      'o', ARGV[at + 3], 'r', ARGV[at + 4])
    redis.call('PEXPIRE', job, ttl)
    notices[#notices + 1] = ARGV[at + 5]
    reply[i] = tonumber(now)
  end
end
if channel ~= '' and #notices > 0 then redis.call('PUBLISH', channel, table.concat(notices)) end
return reply
