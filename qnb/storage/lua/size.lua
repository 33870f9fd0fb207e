-- Count the jobs that wait: in the lanes and not yet claimed, parked at the gates of sweeps, or delayed.
--
-- KEYS  per lane: lane, what was handed back to it, delayed, parked
-- ARGV  none
-- Returns per lane: the number waiting in it, the number delayed.
local function waiting(stream)
  if redis.call('EXISTS', stream) == 0 then return 0 end
  local count = redis.call('XLEN', stream)
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    for f = 1, #group, 2 do
      if group[f] == 'pending' then count = count - group[f + 1] end
    end
  end
  return count
end
local reply = {}
for i = 1, #KEYS, 4 do
  reply[#reply + 1] = waiting(KEYS[i]) + waiting(KEYS[i + 1]) + redis.call('ZCARD', KEYS[i + 3])
  reply[#reply + 1] = redis.call('ZCARD', KEYS[i + 2])
end
return reply
