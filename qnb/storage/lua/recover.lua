-- Put a held job back into its lane, or end it if it has lost its worker too often.
--
-- The lease is judged here, by the server's clock. The new entry has the next attempt number, which
-- fences the worker that held the job, should it still be alive.
--
-- KEYS  1 lane; 2 job
-- ARGV  1 group; 2 entry; 3 least idle time of the lease (ms), or -1: its holder gives it up
--       4 1 if the attempt had begun: it counts as a lost start; 5 lost starts after which the job ends
--       6 outcome of a job that ends here; 7 time to live of an outcome (ms)
--       8 most bytes of a call that ride in the entry; 9 channel, or ''; 10 notice of the end
-- Returns 0 nothing to do, 1 put back, 2 ended.
local lane, job, group, entry = KEYS[1], KEYS[2], ARGV[1], ARGV[2]
local held = redis.call('XPENDING', lane, group, entry, entry, 1)
if #held == 0 or held[1][3] < tonumber(ARGV[3]) then
  return 0
end
local record = redis.call('HMGET', job, 's', 'a', 'n', 'm', 'p', 'e', 't')
local state = record[1]
redis.call('XACK', lane, group, entry)
redis.call('XDEL', lane, entry)
if not state or state == 'c' or record[6] ~= entry then
  return 0
end
local starts = tonumber(record[3])
if ARGV[4] == '1' then
  if state ~= 'r' then starts = starts + 1 end
elseif state == 'r' then
  starts = starts - 1
end
local attempt = tonumber(record[2]) + 1
if ARGV[4] == '1' and starts >= tonumber(ARGV[5]) then
  redis.call('HSET', job, 's', 'c', 'a', attempt, 'n', starts, 'o', ARGV[6], 'r', '')
  redis.call('HDEL', job, 'e')
  redis.call('PEXPIRE', job, ARGV[7])
  if ARGV[9] ~= '' then redis.call('PUBLISH', ARGV[9], ARGV[10]) end
  return 2
end
local fresh = {'j', string.match(job, '([^:]*)$'), 'a', attempt, 'n', starts, 't', record[7], 'm', record[4]}
if #record[5] <= tonumber(ARGV[8]) then
  fresh[#fresh + 1] = 'p'
  fresh[#fresh + 1] = record[5]
end
local again = redis.call('XADD', lane, '*', unpack(fresh))
redis.call('HSET', job, 's', 'q', 'a', attempt, 'n', starts, 'e', again)
redis.call('HDEL', job, 'b', 'w')
return 1
