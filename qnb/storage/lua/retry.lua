-- End a failed attempt and have another one follow: now, at the end of its lane, or later.
--
-- Fenced as in finish.lua. If an abort was asked for meanwhile, nothing is changed: the caller
-- ends the job instead. Numbers are checked before anything is written; a delay beyond all
-- reckoning is a very long one, so that the attempt can end.
--
-- KEYS  1 stream that holds the attempt; 2 job; 3 lane; 4 delayed
-- ARGV  1 group; 2 entry; 3 attempt; 4 starts; 5 delay (ms); 6 failure; 7 time to live of an
--       unfinished job (ms); 8 most bytes of a call that ride in the entry; 9 control channel
--       10 channel, or ''; 11 notice
-- Returns 1 done, 0 the attempt was stale, 2 an abort was asked for.
local job = KEYS[2]
for _, at in ipairs({3, 4, 5, 7, 8}) do
  if not string.match(ARGV[at], '^%d+$') or (at ~= 5 and tonumber(ARGV[at]) > 1e14) then
    return redis.error_reply('ERR argument ' .. at .. ' is no number up to 10^14; nothing was changed')
  end
end
local record = redis.call('HMGET', job, 's', 'a', 'k', 't', 'm', 'p', 'c', 'e')
local state, attempt = record[1], tonumber(ARGV[3])
if not state or state == 'c' or record[2] ~= ARGV[3] then
  -- the same retry sent again, its reply was lost; a job that was recovered meanwhile is in 'b...'
  local next_ = state and state ~= 'c' and tonumber(record[2]) == attempt + 1
  if next_ and string.sub(record[8] or '', 1, 1) ~= 'b' then return 1 end
  return 0
end
if record[3] then return 2 end
local delay = math.min(tonumber(ARGV[5]), 1e14) -- 3,000 years: the server counts no further
local time = redis.call('TIME')
local due = time[1] * 1000 + math.floor(time[2] / 1000) + delay
redis.call('XACK', KEYS[1], ARGV[1], ARGV[2])
redis.call('XDEL', KEYS[1], ARGV[2])
redis.call('HDEL', job, 'b', 'w', 'g', 'x', 'e')
redis.call('HSET', job, 'a', attempt + 1, 'n', ARGV[4], 'f', ARGV[6])
local hex = string.match(job, '([^:]*)$')
if delay > 0 then
  redis.call('HSET', job, 's', 'd', 'd', string.format('%.0f', due))
  redis.call('ZADD', KEYS[4], due, hex)
  redis.call('PUBLISH', ARGV[9], string.format('w%.0f', due))
else
  local entry = {'a', attempt + 1, 'n', ARGV[4], 'c', record[7] or 0, 't', record[4], 'm', record[5]}
  if #record[6] <= tonumber(ARGV[8]) then
    entry[#entry + 1] = 'p'
    entry[#entry + 1] = record[6]
  end
  redis.call('HSET', job, 's', 'q', 'e', redis.call('XADD', KEYS[3], '*', unpack(entry)))
end
redis.call('PEXPIRE', job, tonumber(ARGV[7]) + delay)
if ARGV[10] ~= '' then redis.call('PUBLISH', ARGV[10], ARGV[11]) end
return 1
