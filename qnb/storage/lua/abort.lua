-- End a waiting job, or ask the worker that holds it to stop it.
--
-- KEYS  1 job; 2 lane; 3 what was handed back to it; 4 delayed; 5 expiring
-- ARGV  1 group; 2 outcome of a job that ends here; 3 time to live of an outcome (ms)
--       4 channel, or ''; 5 notice of the end; 6 control channel; 7 task id; 8 who asks
-- Returns 0 unknown or finished, 1 ended, 2 its worker is asked.
local job = KEYS[1]
local record = redis.call('HMGET', job, 's', 'e')
local state, entry = record[1], record[2]
if not state or state == 'c' then return 0 end
local stream, hex = KEYS[2], string.match(job, '([^:]*)$')
if state == 'd' then
  redis.call('ZREM', KEYS[4], hex)
else
  if string.sub(entry, 1, 1) == 'b' then stream, entry = KEYS[3], string.sub(entry, 2) end
  if #redis.call('XRANGE', stream, entry, entry) > 0 then
    local group = redis.pcall('XPENDING', stream, ARGV[1], entry, entry, 1)
    if not group.err and #group > 0 then
      redis.call('HSET', job, 'k', ARGV[8])
      redis.call('PUBLISH', ARGV[6], 'a' .. ARGV[7])
      return 2
    end
    redis.call('XDEL', stream, entry)
  end
end
redis.call('ZREM', KEYS[5], hex)
redis.call('HSET', job, 's', 'c', 'o', ARGV[2], 'r', '')
redis.call('HDEL', job, 'e', 'd', 'f')
redis.call('PEXPIRE', job, ARGV[3])
if ARGV[4] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
return 1
