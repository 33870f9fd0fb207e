-- Set the gate of a sweep, and tell the workers. One that is open without a limit is none.
--
-- A gate reads '<state><limit> <last used> <why>': state o open, p paused, s stopped; limit of the
-- jobs that workers may hold at once, '' for none; epoch ms; of a stopped one, what stopped it. One
-- that is stopped is not stopped again: the first failure is the one to name.
--
-- KEYS  1 gates; 2 holders of the sweep
-- ARGV  1 sweep (hex); 2 state; 3 limit, '' for none, '=' as it is; 4 why; 5 control channel
--       6 the gate as it must be now, '' for any
-- Returns 1 set, 0 left as it was.
local known = redis.call('HGET', KEYS[1], ARGV[1]) or ''
if ARGV[6] ~= '' and known ~= ARGV[6] then return 0 end
local state, limit = string.match(known, '^([ops])(%d*) ')
if ARGV[2] == 's' and state == 's' then return 0 end
if ARGV[3] ~= '=' then limit = ARGV[3] end
limit = limit or ''
if ARGV[2] == 'o' and limit == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  local time = redis.call('TIME')
  local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[2] .. limit .. ' ' .. now .. ' ' .. ARGV[4])
end
if limit == '' then redis.call('DEL', KEYS[2]) end
redis.call('PUBLISH', ARGV[5], 'g' .. ARGV[1])
return 1
