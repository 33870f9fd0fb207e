-- Look for jobs whose time has come: delayed ones that may run, waiting ones that have expired.
--
-- KEYS  per lane: delayed, expiring
-- ARGV  1 most jobs of each kind and lane
-- Returns {milliseconds until the next one, or -1; per lane {due hexes, expired hexes}}.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local reply, next_ = {-1}, nil
for i = 1, #KEYS do
  local found = redis.call('ZRANGEBYSCORE', KEYS[i], '-inf', now, 'LIMIT', 0, ARGV[1])
  local lane = 2 + math.floor((i - 1) / 2)
  reply[lane] = reply[lane] or {}
  reply[lane][2 - i % 2] = found
  local head = redis.call('ZRANGEBYSCORE', KEYS[i], '(' .. string.format('%.0f', now), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if head[2] then next_ = math.min(next_ or tonumber(head[2]), tonumber(head[2])) end
end
if next_ then reply[1] = next_ - now end
return reply
