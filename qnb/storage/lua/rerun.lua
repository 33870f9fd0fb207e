-- Run a finished job again: the same arguments, as a fresh run with a new enqueue time.
--
-- KEYS  1 jobs index; 2 job; 3 lane
-- ARGV  1 spec (of the same call, with a nonce of its own)
--       2 time to live of an unfinished job (ms); 3 most bytes of a call that ride in the entry; 4 call
-- Returns its enqueue time (ms), later than that of the run before it; also if this was sent twice;
-- 0 unknown or not finished.
local job = KEYS[2]
local record = redis.call('HMGET', job, 's', 'a', 'm', 't')
if record[1] and record[3] == ARGV[1] then return tonumber(record[4]) end
if record[1] ~= 'c' then return 0 end
local time = redis.call('TIME')
local born = math.max(time[1] * 1000 + math.floor(time[2] / 1000), tonumber(record[4]) + 1)
local now = string.format('%.0f', born)
local hex, attempt = string.match(job, '([^:]*)$'), tonumber(record[2]) + 1
local entry = {'j', hex, 'a', attempt, 'n', 0, 'c', 0, 't', now, 'm', ARGV[1]}
if #ARGV[4] <= tonumber(ARGV[3]) then
  entry[#entry + 1] = 'p'
  entry[#entry + 1] = ARGV[4]
end
redis.call('DEL', job)
redis.call('HSET', job, 'm', ARGV[1], 'p', ARGV[4], 't', now, 's', 'q', 'a', attempt, 'n', 0, 'e', redis.call('XADD', KEYS[3], '*', unpack(entry)))
redis.call('PEXPIRE', job, ARGV[2])
redis.call('ZADD', KEYS[1], now, hex)
return born
