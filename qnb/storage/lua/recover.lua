-- Put a held job back to the front of its lane, or end it: it has lost its worker too often, or an
-- abort was asked for.
--
-- The lease is judged here, by the server's clock. The new entry has the next attempt number, which
-- fences the worker that held the job, should it still be alive.
--
-- KEYS  1 stream that holds it; 2 stream of what is handed back to its lane; 3 job
-- ARGV  1 group; 2 entry; 3 least idle time of the lease (ms), or -1: its holder gives it up
--       4 how many lost starts it counts as, 0: it had not begun; 5 lost starts after which the job ends
--       6 outcome of a job that ends here; 7 outcome of one that was to be aborted
--       8 time to live of an outcome (ms); 9 most bytes of a call that ride in the entry
--       10 channel, or ''; 11 notice of the end
-- Returns 0 nothing to do, 1 put back, 2 ended.
local stream, job, group, entry = KEYS[1], KEYS[3], ARGV[1], ARGV[2]
local held = redis.call('XPENDING', stream, group, entry, entry, 1)
if #held == 0 or held[1][3] < tonumber(ARGV[3]) then
  return 0
end
local record = redis.call('HMGET', job, 's', 'a', 'n', 'm', 'p', 'e', 't', 'c', 'k', 'x')
local state, at = record[1], record[6]
redis.call('XACK', stream, group, entry)
redis.call('XDEL', stream, entry)
local mine = stream == KEYS[2] and 'b' .. entry or entry
if not state or state == 'c' or at ~= mine then
  return 0
end
local begun = tonumber(ARGV[4])
local starts = tonumber(record[3]) + begun - (state == 'r' and 1 or 0)
local lost = tonumber(record[8] or 0) + begun
local attempt = tonumber(record[2]) + 1
local outcome = record[9] and ARGV[7] or lost >= tonumber(ARGV[5]) and ARGV[6]
if outcome then
  redis.call('HSET', job, 's', 'c', 'a', attempt, 'n', starts, 'c', lost, 'o', outcome, 'r', '')
  redis.call('HDEL', job, 'e', 'k', 'f')
  redis.call('PEXPIRE', job, ARGV[8])
  if ARGV[10] ~= '' then redis.call('PUBLISH', ARGV[10], ARGV[11]) end
  return 2
end
local fresh = {'a', attempt, 'n', starts, 'c', lost, 't', record[7], 'm', record[4]}
if #record[5] <= tonumber(ARGV[9]) then
  fresh[#fresh + 1] = 'p'
  fresh[#fresh + 1] = record[5]
end
if record[10] and begun == 0 then -- it has not been started: its expiry still runs
  fresh[#fresh + 1] = 'x'
  fresh[#fresh + 1] = record[10]
end
local again = redis.call('XADD', KEYS[2], '*', unpack(fresh))
redis.call('HSET', job, 's', 'q', 'a', attempt, 'n', starts, 'c', lost, 'e', 'b' .. again)
redis.call('HDEL', job, 'b', 'w', 'g')
if begun > 0 then redis.call('HDEL', job, 'x') end
return 1
