-- End waiting jobs of a lane, or ask the workers that hold them to stop them.
--
-- KEYS  1 lane; 2 what was handed back to it; 3 delayed; 4 expiring; 5 parked; then the jobs
-- ARGV  1 group; 2 time to live of an outcome (ms); 3 control channel; 4 who asks
--       5 prefix of a channel's name
--       then per job: task id, outcome of one that ends here, channel ('' for none), notice of it
-- Returns one number per job: 0 unknown or finished, 1 ended, 2 its worker is asked.
local function held(stream, entry)
  local ms, seq = string.match(entry, '^(%d+)-(%d+)$') -- else a stranger wrote it, and no worker holds it
  if not ms or #ms > 19 or #seq > 19 or #redis.call('XRANGE', stream, entry, entry) == 0 then return false end
  local group = redis.pcall('XPENDING', stream, ARGV[1], entry, entry, 1)
  if group.err and not string.find(group.err, 'NOGROUP', 1, true) then -- no group: no worker yet
    redis.call('XPENDING', stream, ARGV[1], entry, entry, 1) -- fails: who may not ask must not believe that it waits
  end
  if not group.err and #group > 0 then return true end
  redis.call('XDEL', stream, entry)
  return false
end
local reply, notices = {}, {}
for i = 1, #KEYS - 5 do
  local job, at = KEYS[5 + i], 2 + 4 * i
  local record = redis.call('HMGET', job, 's', 'e')
  local state, entry, hex = record[1], record[2] or '', string.match(job, '([^:]*)$')
  local place, rest, asked = string.sub(entry, 1, 1), string.sub(entry, 2), false
  reply[i] = 0
  if state and state ~= 'c' then
    if state == 'd' then
      redis.call('ZREM', KEYS[3], hex)
    elseif place == 'p' then
      redis.call('ZREM', KEYS[5], rest)
    elseif place == 'b' then
      asked = held(KEYS[2], rest)
    elseif place ~= '' then
      asked = held(KEYS[1], entry)
    end
    if asked then
      redis.call('HDEL', job, 'k') -- first, as in finish.lua
      redis.call('HSET', job, 'k', ARGV[4])
      redis.call('PUBLISH', ARGV[3], 'a' .. ARGV[at])
      reply[i] = 2
    else
      redis.call('ZREM', KEYS[4], hex)
      redis.call('HSET', job, 's', 'c', 'o', ARGV[at + 1], 'r', '')
      redis.call('HDEL', job, 'e', 'd', 'f')
      redis.call('PEXPIRE', job, ARGV[2])
      local channel = ARGV[at + 2]
      if channel ~= '' then
        local list = notices[channel] or {}
        list[#list + 1] = ARGV[at + 3]
        notices[channel] = list
      end
      reply[i] = 1
    end
  end
end
for channel, list in pairs(notices) do
  redis.call('PUBLISH', ARGV[5] .. channel, table.concat(list))
end
return reply
