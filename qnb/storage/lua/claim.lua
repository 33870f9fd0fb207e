-- Take waiting jobs, the first stream first; each is leased to the consumer from this moment.
--
-- KEYS  streams: of the highest lane what was handed back, then the lane; then the next lane's
-- ARGV  1 group; 2 consumer; 3 most jobs
-- Returns a list of {stream (1-based), entries} as XREADGROUP gives them.
local group, consumer, want = ARGV[1], ARGV[2], tonumber(ARGV[3])
local reply = {}
for i = 1, #KEYS do
  if want <= 0 then break end
  local read = redis.call('XREADGROUP', 'GROUP', group, consumer, 'COUNT', want, 'STREAMS', KEYS[i], '>')
  if read then
    local entries = read[1][2]
    want = want - #entries
    reply[#reply + 1] = {i, entries}
  end
end
return reply
