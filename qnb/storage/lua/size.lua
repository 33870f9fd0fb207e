-- Count the jobs that wait: in the lanes and not yet claimed, or delayed.
--
-- KEYS  1 delayed; then the lanes
-- ARGV  1 group
-- Returns the count.
local waiting = redis.call('ZCARD', KEYS[1])
for i = 2, #KEYS do
  local held = 0
  for _, group in ipairs(redis.call('EXISTS', KEYS[i]) == 1 and redis.call('XINFO', 'GROUPS', KEYS[i]) or {}) do
    for f = 1, #group, 2 do
      if group[f] == 'pending' then held = held + group[f + 1] end
    end
  end
  waiting = waiting + redis.call('XLEN', KEYS[i]) - held
end
return waiting
