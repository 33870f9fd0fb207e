-- Take back the places of jobs of a sweep that are held no more, and let parked ones go on: to the
-- front of their lane, in the order in which they waited. With a limit each has its place from now on.
--
-- KEYS  1 gates; 2 holders of the sweep; 3 parked jobs of the lane; 4 what was handed back to it
--       then the jobs that hold places; then the parked ones
-- ARGV  1 sweep (hex); 2 most bytes of a call that ride in the entry; 3 number of holders
--       then per parked job: its member of the parked ones
-- Returns the number of jobs that go on.
local gates, holders, parked, back = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local inline, count = tonumber(ARGV[2]), tonumber(ARGV[3])
for i = 5, 4 + count do
  local hex, record = string.match(KEYS[i], '([^:]*)$'), redis.pcall('HMGET', KEYS[i], 's', 'e')
  local entry = redis.call('HGET', holders, hex)
  if entry and (record.err or record[1] == 'c' or record[2] ~= entry) then redis.call('HDEL', holders, hex) end
end
local state, limit = string.match(redis.call('HGET', gates, ARGV[1]) or '', '^([ops])(%d*) ')
limit = tonumber(limit or '')
local room = limit and limit - redis.call('HLEN', holders) or #ARGV
if state == 'p' or state == 's' then room = 0 end
local moved = 0
for i = 4, #ARGV do
  local job, member = KEYS[1 + count + i], ARGV[i]
  local record = redis.pcall('HMGET', job, 's', 'e', 'a', 'n', 'c', 't', 'm', 'p', 'x')
  local whole = record[1] == 'q' and record[3] and record[4] and record[6] and record[7] and record[8]
  if not whole or record[2] ~= 'p' .. member then
    redis.call('ZREM', parked, member) -- it has ended, or was never a job
  elseif moved < room then
    local hex = string.match(job, '([^:]*)$')
    local fresh = {'j', hex, 'a', record[3], 'n', record[4], 'c', record[5] or 0, 't', record[6], 'm', record[7]}
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
return moved
