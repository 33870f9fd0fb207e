-- Store new jobs and put each in its lane.
--
-- A job whose id is already waiting or running is left as it is, and so is a repeated send of the
-- very same call (its spec carries a nonce); a complete one is replaced by a fresh run.
--
-- KEYS  1 jobs index; then the lanes; then one job per call, no job twice
-- ARGV  1 number of lanes; 2 time to live of an unfinished job (ms)
--       3 most bytes of a call that ride in the lane's entry
--       then per job: lane (1-based among the lanes), job hex, spec, call
-- Returns one number per job: 1 stored, 0 it was there already.
local index, lanes, ttl, inline = KEYS[1], tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local count = #KEYS - 1 - lanes
local known = {}
for i = 1, count do
  known[i] = redis.call('HMGET', KEYS[1 + lanes + i], 's', 'm')
end
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local reply = {}
for i = 1, count do
  local job, at = KEYS[1 + lanes + i], 4 * i
  local lane, hex, spec, call = KEYS[1 + ARGV[at]], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local state = known[i][1]
  if state and (state ~= 'c' or known[i][2] == spec) then
    reply[i] = 0
  else
    if state then redis.call('DEL', job) end
    local entry
    if #call <= inline then
      entry = redis.call('XADD', lane, '*', 'j', hex, 'a', 1, 'n', 0, 't', now, 'm', spec, 'p', call)
    else
      entry = redis.call('XADD', lane, '*', 'j', hex, 'a', 1, 'n', 0, 't', now, 'm', spec)
    end
    redis.call('HSET', job, 'm', spec, 'p', call, 't', now, 's', 'q', 'a', 1, 'n', 0, 'e', entry)
    redis.call('PEXPIRE', job, ttl)
    redis.call('ZADD', index, now, hex)
    reply[i] = 1
  end
end
return reply
