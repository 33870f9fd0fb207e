-- Have functions live at least so long from now; none is shortened.
--
-- KEYS  functions
-- ARGV  per function: time to live (ms)
-- Returns one number per function: 1 kept, 0 it is not stored.
local reply = {}
for i = 1, #KEYS do
  local left = redis.call('PTTL', KEYS[i])
  if left >= 0 and left < tonumber(ARGV[i]) then redis.call('PEXPIRE', KEYS[i], ARGV[i]) end
  reply[i] = left == -2 and 0 or 1
end
return reply
