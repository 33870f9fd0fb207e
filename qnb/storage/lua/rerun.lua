-- Run finished jobs again: the same arguments, each as a fresh run with a new enqueue time.
--
-- No job twice. What a stranger wrote in the place of a number counts as none: it must not stop the
-- others half-way through.
--
-- KEYS  1 jobs index; 2 lane; then the jobs
-- ARGV  1 time to live of an unfinished job (ms); 2 most bytes of a call that ride in the entry
--       then per job: spec (of the same call, with a nonce of its own), call
-- Returns one number per job: its enqueue time (ms), later than that of the run before it; also if
-- this was sent twice; 0 unknown or not finished.
local function whole(text)
  local n = text and string.match(text, '^%d+$') and tonumber(text)
  return n and n <= 1e14 and n or 0
end
local reply = {}
local time = redis.call('TIME')
local clock = time[1] * 1000 + math.floor(time[2] / 1000)
local known = {}
for i = 1, #KEYS - 2 do
  known[i] = redis.pcall('HMGET', KEYS[i + 2], 's', 'a', 'm', 't') -- an error, if the key is of another type
end
for i = 1, #KEYS - 2 do
  local job, record, spec, call = KEYS[i + 2], known[i], ARGV[2 * i + 1], ARGV[2 * i + 2]
  if record[1] and record[3] == spec then
    reply[i] = whole(record[4])
  elseif record[1] ~= 'c' then
    reply[i] = 0
  else
    local born = math.max(clock, whole(record[4]) + 1)
    local now = string.format('%.0f', born)
    local hex, attempt = string.match(job, '([^:]*)$'), whole(record[2]) + 1
    local entry = {'a', attempt, 'n', 0, 'c', 0, 't', now, 'm', spec}
    if #call <= tonumber(ARGV[2]) then
      entry[#entry + 1] = 'p'
      entry[#entry + 1] = call
    end
    local at = redis.call('XADD', KEYS[2], '*', unpack(entry)) -- first: a lane that takes nothing costs no job
    redis.call('DEL', job)
    redis.call('HSET', job, 'm', spec, 'p', call, 't', now, 's', 'q', 'a', attempt, 'n', 0, 'e', at)
    redis.call('PEXPIRE', job, ARGV[1])
    redis.call('ZADD', KEYS[1], now, hex)
    reply[i] = born
  end
end
return reply
