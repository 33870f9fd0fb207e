-- Note what running bodies say: progress into the record, output into the log, which is a ring.
--
-- What an attempt says that is no longer the job's is dropped.
--
-- KEYS  per job: job, log
-- ARGV  1 most bytes of a log; 2 time to live of the log of an unfinished job (ms)
--       3 number of channels; then the channels
--       then per job: attempt, report ('' for none), output ('' for none),
--       channel (1-based, 0 for none), notice
-- Returns the number of jobs noted.
local most, ttl, channels = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local noted, notices, piece = 0, {}, 16384
for i = 1, #KEYS / 2 do
  local job, log, at = KEYS[2 * i - 1], KEYS[2 * i], 4 + channels + 5 * (i - 1)
  local current = redis.call('HMGET', job, 's', 'a', 'l')
  if current[1] and current[1] ~= 'c' and current[2] == ARGV[at] then
    noted = noted + 1
    if ARGV[at + 1] ~= '' then redis.call('HSET', job, 'g', ARGV[at + 1]) end
    local output = ARGV[at + 2]
    if output ~= '' then
      for from = 1, #output, piece do
        redis.call('RPUSH', log, string.sub(output, from, from + piece - 1))
      end
      local size, dropped = tonumber(current[3] or 0) + #output, 0
      while size > most do
        local gone = redis.call('LPOP', log)
        if not gone then break end
        size = size - #gone
        dropped = dropped + #gone
      end
      redis.call('HSET', job, 'l', size)
      if dropped > 0 then redis.call('HINCRBY', job, 'ld', dropped) end
      redis.call('PEXPIRE', log, ttl)
    end
    local channel = tonumber(ARGV[at + 3])
    if channel > 0 then notices[channel] = (notices[channel] or '') .. ARGV[at + 4] end
  end
end
for channel, notice in pairs(notices) do
  redis.call('PUBLISH', ARGV[3 + channel], notice)
end
return noted
