-- Enqueue the run of a schedule's occurrence, once, whoever asks and whatever their clocks say.
--
-- KEYS  1 marker of the occurrence; 2 jobs index; 3 job; 4 lane
-- ARGV  1 occurrence (epoch ms); 2 time to live of the marker (ms)
--       3 time to live of an unfinished job (ms); 4 spec; 5 call
-- Returns milliseconds until the occurrence if it is still to come, else 0; -1 if it was taken.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local early = tonumber(ARGV[1]) - now
if early > 0 then return early end
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', ARGV[2]) then return -1 end
if redis.call('EXISTS', KEYS[3]) == 1 then return -1 end
local text = string.format('%.0f', now)
local entry = redis.call('XADD', KEYS[4], '*', 'a', 1, 'n', 0, 'c', 0, 't', text, 'm', ARGV[4], 'p', ARGV[5])
redis.call('HSET', KEYS[3], 'm', ARGV[4], 'p', ARGV[5], 't', text, 's', 'q', 'a', 1, 'n', 0, 'e', entry)
redis.call('PEXPIRE', KEYS[3], ARGV[3])
redis.call('ZADD', KEYS[2], now, string.match(KEYS[3], '([^:]*)$'))
return 0
