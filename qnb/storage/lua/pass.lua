-- Ask the gate of a sweep about jobs that a worker has claimed and not started: each goes on, or is
-- parked, its lease given up. A new attempt number fences whoever still believes to hold it.
--
-- A place is held by an entry, as the job's record names it: whatever else becomes of the job, its
-- record names another entry, or none, and release.lua takes the place back. Nobody passes those of
-- his lane that are parked before him. One that is to be aborted goes on: its worker ends it.
--
-- KEYS  1 gates; 2 holders of the sweep; 3 parked jobs of the lane; 4 lane; 5 what was handed back
--       to it; then the jobs
-- ARGV  1 group; 2 sweep (hex); 3 a day (ms): a gate in use says so once a day
--       then per job: its entry, 'b' in front of one that was handed back
-- Returns one number per job: 1 go on, 0 parked or not held any more; then 1 if parked jobs of the
-- sweep may go on, or are to end; else 0.
local gates, holders, parked, sweep = KEYS[1], KEYS[2], KEYS[3], ARGV[2]
local state, limit, used, why = string.match(redis.call('HGET', gates, sweep) or '', '^([ops])(%d*) (%d+)(.*)$')
if state then
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  if now - tonumber(used) > tonumber(ARGV[3]) then
    redis.call('HSET', gates, sweep, state .. limit .. ' ' .. string.format('%.0f', now) .. why)
  end
end
limit = tonumber(limit or '')
local count = limit and redis.call('HLEN', holders) or 0
local queue = #redis.call('ZRANGEBYLEX', parked, '[' .. sweep, '(' .. sweep .. '~', 'LIMIT', 0, 1) > 0
local reply = {}
for i = 1, #KEYS - 5 do
  local job, entry = KEYS[5 + i], ARGV[3 + i]
  local hex, back = string.match(job, '([^:]*)$'), string.sub(entry, 1, 1) == 'b'
  local stream, id = back and KEYS[5] or KEYS[4], back and string.sub(entry, 2) or entry
  local record = redis.pcall('HMGET', job, 's', 'e', 'k')
  local mine = record[1] and record[1] ~= 'c' and record[2] == entry
  local has = mine and limit and redis.call('HGET', holders, hex) == entry
  local room = not limit or (has and count <= limit) or (not has and count < limit)
  if mine and (record[3] or record[1] == 'r') then
    reply[i] = 1
  elseif mine and state ~= 'p' and state ~= 's' and room and (back or has or not queue) then
    if limit and not has then
      count = count + 1 - redis.call('HDEL', holders, hex)
      redis.call('HSET', holders, hex, entry)
    end
    reply[i] = 1
  else
    redis.call('XACK', stream, ARGV[1], id)
    redis.call('XDEL', stream, id)
    reply[i] = 0
    if mine then
      if has then count = count - redis.call('HDEL', holders, hex) end
      local ms, seq = string.match(id, '^(%d+)-(%d+)$')
      local place = string.rep('0', 15 - #ms) .. ms .. '-' .. string.rep('0', 10 - #seq) .. seq
      local member = sweep .. (back and '0' or '1') .. place .. hex
      redis.call('ZADD', parked, 0, member)
      redis.call('HSET', job, 's', 'q', 'e', 'p' .. member)
      redis.call('HINCRBY', job, 'a', 1)
      queue = true
    end
  end
end
local open = state ~= 'p' and (state == 's' or not limit or count < limit)
reply[#reply + 1] = queue and open and 1 or 0
return reply
