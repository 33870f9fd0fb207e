-- Where jobs are: a small answer for each, however large their records.
--
-- KEYS  jobs
-- Returns three values per job: its state, for a complete one its state and how it ended ('cdone'),
-- '' for one that is not known; when its body started and when it ended (epoch ms), 0 while it has not;
-- of one whose result was used again no body has started.
local reply = {}
for i = 1, #KEYS do
  local known = redis.pcall('HMGET', KEYS[i], 's', 'b', 'o')
  local state, start, finish = '', 0, 0
  if not known.err and known[1] then
    state, start = known[1], tonumber(known[2] or 0) or 0
    if state == 'c' then
      local readable, outcome = pcall(cmsgpack.unpack, known[3] or '')
      if readable and type(outcome) == 'table' then
        state = 'c' .. tostring(outcome[1])
        start, finish = tonumber(outcome[3]) or 0, tonumber(outcome[4]) or 0
        if outcome[10] then start = 0 end
      end
    end
  end
  reply[#reply + 1] = state
  reply[#reply + 1] = start
  reply[#reply + 1] = finish
end
return reply
