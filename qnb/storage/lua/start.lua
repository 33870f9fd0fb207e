-- Mark claimed jobs as running, and tell the clients that wait for them. Their time to live begins
-- anew: what has waited for long must not expire while it runs, or its end would find no record.
--
-- A mark whose attempt is no longer the job's (it was recovered, or has ended) changes nothing.
--
-- KEYS  one job per mark
-- ARGV  1 worker; 2 time to live of an unfinished job (ms); 3 number of channels; then the channels
--       then per mark: attempt, starts, start (epoch ms), channel (1-based, 0 for none), notice
-- Returns the number of jobs marked.
local worker, channels = ARGV[1], tonumber(ARGV[3])
local current = {}
for i = 1, #KEYS do
  current[i] = redis.call('HMGET', KEYS[i], 's', 'a')
end
local notices, marked = {}, 0
for i = 1, #KEYS do
  local at = 4 + channels + 5 * (i - 1)
  local state, attempt = current[i][1], current[i][2]
  if state == 'q' and attempt == ARGV[at] then
    redis.call('PEXPIRE', KEYS[i], ARGV[2]) -- first, as in finish.lua
    redis.call('HSET', KEYS[i], 's', 'r', 'n', ARGV[at + 1], 'b', ARGV[at + 2], 'w', worker)
    marked = marked + 1
    local channel = tonumber(ARGV[at + 3])
    if channel > 0 then
      notices[channel] = (notices[channel] or '') .. ARGV[at + 4]
    end
  end
end
for channel, notice in pairs(notices) do
  redis.call('PUBLISH', ARGV[3 + channel], notice)
end
return marked
