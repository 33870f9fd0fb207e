-- Take back the places of jobs of a sweep that are held no more, and let parked ones go on: to the
-- front of their lane, in the order in which they waited. With a limit each has its place from now
-- on; without one it is a few at a time, so that the front stays the front for what is handed back.
--
-- KEYS  1 gates; 2 holders of the sweep; 3 parked jobs of the lane; 4 what was handed back to it
--       then the jobs that hold places; then the parked ones
-- ARGV  1 sweep (hex); 2 most bytes of a call that ride in the entry; 3 group
--       4 most unclaimed jobs at the front, if there is no limit; 5 number of holders
--       then per parked job: its member of the parked ones
-- Returns the number of jobs that are parked no more.
local gates, holders, parked, back = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local inline, count = tonumber(ARGV[2]), tonumber(ARGV[5])
for i = 5, 4 + count do
  local hex, record = string.match(KEYS[i], '([^:]*)$'), redis.pcall('HMGET', KEYS[i], 's', 'e')
  local entry = redis.call('HGET', holders, hex)
  if entry and (record.err or record[1] == 'c' or record[2] ~= entry) then redis.call('HDEL', holders, hex) end
end
local state, limit = string.match(redis.call('HGET', gates, ARGV[1]) or '', '^([ops])(%d*) ')
limit = tonumber(limit or '')
local room = 0
if limit then
  room = limit - redis.call('HLEN', holders)
else
  room = tonumber(ARGV[4]) - redis.call('XLEN', back)
  local held = redis.pcall('XPENDING', back, ARGV[3])
  if not held.err then room = room + held[1] end
end
if state == 'p' or state == 's' then room = 0 end
local moved, gone = 0, 0
for i = 6, #ARGV do
  if moved >= room then break end
  local job, member = KEYS[count + i - 1], ARGV[i]
  local record = redis.pcall('HMGET', job, 's', 'e', 'a', 'n', 'c', 't', 'm', 'p', 'x')
  local whole = record[1] == 'q' and record[3] and record[4] and record[6] and record[7] and record[8]
  if not whole or record[2] ~= 'p' .. member then
    redis.call('ZREM', parked, member) -- it has ended, or was never a job
    gone = gone + 1
  else
    local hex = string.match(job, '([^:]*)$')
    local fresh = {'a', record[3], 'n', record[4], 'c', record[5] or 0, 't', record[6], 'm', record[7]}
    if #record[8] <= inline then
      fresh[#fresh + 1] = 'p'
      fresh[#fresh + 1] = record[8]
    end
    if record[9] then
      fresh[#fresh + 1] = 'x'
      fresh[#fresh + 1] = record[9]
    end
    local entry = 'b' .. redis.call('XADD', back, '*', unpack(fresh))
    redis.call('HSET', job, 'e', entry)
    redis.call('ZREM', parked, member)
    if limit then redis.call('HSET', holders, hex, entry) end
    moved = moved + 1
  end
end
return moved + gone
