-- Create a sweep, or give it other points.
--
-- What can fail is done first: a key of another type leaves nothing half-written.
--
-- KEYS  1 sweeps index; 2 sweep; 3 its points; 4 its digests
-- ARGV  1 prefix of its jobs' ids; 2 version that is replaced, '' to create it; 3 time to live (ms)
--       4 hex; 5 nonce of this call; 6 number of fields; then field, value of each; then the parts
--       of its points
-- Returns its version now (from 1), also if this was sent twice; 0 if there is a sweep of that name
-- already, or, with a version, if it has another one or is another sweep: nothing was changed.
local index, sweep, points, digests = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local prefix, version, ttl, nonce, count = ARGV[1], ARGV[2], ARGV[3], ARGV[5], tonumber(ARGV[6])
local known = redis.call('HMGET', sweep, 'p', 'v', 'i')
if known[1] == prefix and known[3] == nonce then return tonumber(known[2]) or 0 end
if version == '' then
  if known[1] then return 0 end
elseif known[1] ~= prefix or known[2] ~= version then
  return 0
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('ZADD', index, now, ARGV[4])
if version == '' then redis.call('DEL', sweep, digests) end
local reply = redis.call('HINCRBY', sweep, 'v', 1)
if version == '' then redis.call('HSET', sweep, 'p', prefix, 'c', now, 's', 0) end
for i = 1, count do
  redis.call('HSET', sweep, ARGV[5 + 2 * i], ARGV[6 + 2 * i])
end
redis.call('HSET', sweep, 'b', now, 'i', nonce)
redis.call('DEL', points)
for i = 7 + 2 * count, #ARGV do
  redis.call('RPUSH', points, ARGV[i])
end
for i = 2, 4 do redis.call('PEXPIRE', KEYS[i], ttl) end
return reply
