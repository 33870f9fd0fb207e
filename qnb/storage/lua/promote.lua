-- Put delayed jobs whose time has come into their lane. The time is judged here.
--
-- KEYS  1 delayed; 2 lane; then one job per hex
-- ARGV  1 most bytes of a call that ride in the entry; then the hexes
-- Returns the number of jobs put into the lane.
local delayed, lane, inline = KEYS[1], KEYS[2], tonumber(ARGV[1])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local moved = 0
for i = 3, #KEYS do
  local job, hex = KEYS[i], ARGV[i - 1]
  local record = redis.pcall('HMGET', job, 's', 'd', 'a', 'n', 'c', 't', 'm', 'p', 'x')
  local whole = record[1] == 'd' and record[3] and record[4] and record[6] and record[7] and record[8]
  local due = whole and tonumber(record[2] or '')
  if not due then -- no longer delayed; or not a job at all: anybody may have written it
    redis.call('ZREM', delayed, hex)
  elseif due <= now then
    local entry = {'a', record[3], 'n', record[4], 'c', record[5] or 0, 't', record[6], 'm', record[7]}
    if #record[8] <= inline then
      entry[#entry + 1] = 'p'
      entry[#entry + 1] = record[8]
    end
    if record[9] then
      entry[#entry + 1] = 'x'
      entry[#entry + 1] = record[9]
    end
    redis.call('HSET', job, 's', 'q', 'e', redis.call('XADD', lane, '*', unpack(entry)))
    redis.call('HDEL', job, 'd')
    redis.call('ZREM', delayed, hex)
    moved = moved + 1
  end
end
return moved
