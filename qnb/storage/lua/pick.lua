-- Read those jobs that fit: the rows of a table, many in one answer.
--
-- Writes nothing. A bulky field that is too large is left out, so that an answer stays small.
--
-- KEYS  jobs
-- ARGV  1 task name, 2 sweep, 3 state ('q', 'd', 'r', 'c'): '' for any
--       4 most bytes of a bulky field, 5 number of bulky fields; then those; then the other fields
-- Returns per job: spec, state, the other fields, the bulky ones (nil: absent or too large); nil in
-- place of a job that does not fit or is not known.
local task, sweep, state = ARGV[1], ARGV[2], ARGV[3]
local most, bulky = tonumber(ARGV[4]), tonumber(ARGV[5])

local function fits(row)
  if row.err or not row[1] or not row[2] then return false end
  if state ~= '' and row[2] ~= state then return false end
  if task == '' and sweep == '' then return true end
  -- Seven of its fields, past the byte that heads them: cmsgpack cannot read those that hold bytes.
  local readable, _, _, name, _, _, _, _, study = pcall(cmsgpack.unpack_limit, row[1], 7, 1)
  return readable and (task == '' or name == task) and (sweep == '' or study == sweep)
end

local reply = {}
for i, job in ipairs(KEYS) do
  local row = redis.pcall('HMGET', job, 'm', 's', unpack(ARGV, 6 + bulky))
  if fits(row) then
    for field = 6, 5 + bulky do
      local small = redis.call('HSTRLEN', job, ARGV[field]) <= most
      row[#row + 1] = small and redis.call('HGET', job, ARGV[field])
    end
    reply[i] = row
  else
    reply[i] = false
  end
end
return reply
