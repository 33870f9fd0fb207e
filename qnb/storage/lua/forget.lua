-- Take everything of a sweep, or of some of its jobs, out of the store.
--
-- KEYS  1 jobs index; 2 sweeps index; then what goes: jobs, logs, keys of the sweep
-- ARGV  1 hex of the sweep, '' to leave it among the sweeps; then the hexes of the jobs
-- Returns how many keys there were.
for i = 2, #ARGV do
  redis.call('ZREM', KEYS[1], ARGV[i])
end
if ARGV[1] ~= '' then redis.call('ZREM', KEYS[2], ARGV[1]) end
local gone = 0
for i = 3, #KEYS do
  gone = gone + redis.call('DEL', KEYS[i])
end
return gone
