-- Where jobs are: a small answer for each, however large their records, whoever wrote them.
--
-- KEYS  jobs
-- ARGV  none
-- Returns three values per job: its state, for a complete one its state and how it ended ('cdone'),
-- '' for one that is not known; when its body started and when it ended (epoch ms), 0 while it has not;
-- of one whose result was used again no body has started.
local function whole(value)
  local n = tonumber(value)
  return n and n >= 0 and n <= 1e14 and math.floor(n) or 0
end
local reply = {}
for i = 1, #KEYS do
  local known = redis.pcall('HMGET', KEYS[i], 's', 'b', 'o')
  local state, start, finish = '', 0, 0
  if not known.err and known[1] and #known[1] == 1 then
    state, start = known[1], whole(known[2])
    if state == 'c' then
      local readable, outcome = pcall(cmsgpack.unpack, known[3] or '')
      if readable and type(outcome) == 'table' then
        local ending = outcome[1]
        if type(ending) == 'string' and #ending <= 16 then state = 'c' .. ending end
        start, finish = whole(outcome[3]), whole(outcome[4])
        if outcome[10] then start = 0 end
      end
    end
  end
  reply[#reply + 1] = state
  reply[#reply + 1] = start
  reply[#reply + 1] = finish
end
return reply
