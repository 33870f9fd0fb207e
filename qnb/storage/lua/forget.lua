-- Take everything of a sweep, or of some of its jobs, out of the store.
--
-- KEYS  1 jobs index; 2 sweeps index; then what goes: jobs and logs, or the sweep and then its keys
-- ARGV  1 hex of the sweep, '' for jobs; 2 prefix of its jobs' ids; then the hexes of the jobs
-- Returns how many keys there were; 0 if it is another sweep by now: it stays.
if ARGV[1] ~= '' then
  if redis.call('HGET', KEYS[3], 'p') ~= ARGV[2] then return 0 end
  redis.call('ZREM', KEYS[2], ARGV[1])
end
for i = 3, #ARGV do
  redis.call('ZREM', KEYS[1], ARGV[i])
end
local gone = 0
for i = 3, #KEYS do
  gone = gone + redis.call('DEL', KEYS[i])
end
return gone
