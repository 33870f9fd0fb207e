-- Read what a run of a job has put out since the reader last looked; nothing is fetched unless there
-- is more.
--
-- KEYS  1 job; 2 log of that run
-- ARGV  1 enqueue time of that run; 2 bytes that the reader has seen
-- Returns the number of bytes dropped before what is kept, and the text after the larger of the two.
local job = redis.call('HMGET', KEYS[1], 't', 'l', 'ld')
local since, start = tonumber(ARGV[2]), 0
if job[1] == ARGV[1] then -- else a later run counts there
  start = tonumber(job[3] or 0) or 0
  if start + (tonumber(job[2] or 0) or 0) <= since then return {start, ''} end
end
local text = table.concat(redis.call('LRANGE', KEYS[2], 0, -1))
return {start, string.sub(text, math.max(since - start, 0) + 1)}
