-- Note how far a sweep has come: jobs that are stored, their digests, more points, or how it ended.
--
-- Points that are its last ones already are not added again: this was sent twice. No two parts are
-- the same: each holds the numbers of its jobs.
--
-- KEYS  1 sweep; 2 its points; 3 its digests
-- ARGV  1 prefix of its jobs' ids; 2 version, '' for any; 3 time to live (ms)
--       4 jobs stored so far, '' if that is not the news; 5 the first job of the digests
--       6 digests, 16 bytes each, '' for none; 7 number of fields; then field, value of each
--       then more parts of its points
-- Returns 1; 0 if it is another sweep by now, has been forgotten or was given other points; 2, having
-- noted the same, if it has been cancelled: whoever stores its jobs stops.
local sweep, points, digests = KEYS[1], KEYS[2], KEYS[3]
local known = redis.call('HMGET', sweep, 'p', 'v', 's', 'h')
if known[1] ~= ARGV[1] or (ARGV[2] ~= '' and known[2] ~= ARGV[2]) then return 0 end
local stored, count = tonumber(ARGV[4]), tonumber(ARGV[7])
local first, last = 8 + 2 * count, #ARGV
if first <= last and redis.call('LINDEX', points, -1) == ARGV[last] then first = last + 1 end
-- The first to be written: it fails where there is no more room, or a key of another type.
if ARGV[6] ~= '' then redis.call('SETRANGE', digests, 16 * tonumber(ARGV[5]), ARGV[6]) end
if stored then
  local time = redis.call('TIME')
  redis.call('HSET', sweep, 'b', string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000)))
  local so_far = string.match(known[3] or '', '^%d+$') or 0
  if stored > tonumber(so_far) then redis.call('HSET', sweep, 's', ARGV[4]) end
end
for i = 1, count do
  redis.call('HSET', sweep, ARGV[6 + 2 * i], ARGV[7 + 2 * i])
end
for i = first, last do
  redis.call('RPUSH', points, ARGV[i])
end
for i = 1, 3 do redis.call('PEXPIRE', KEYS[i], ARGV[3]) end
return string.sub(known[4] or '', 1, 9) == 'cancelled' and 2 or 1
