-- Forget a consumer that has left, unless it still holds jobs: those are recovered when their
-- leases are over, and forgetting the consumer would forget them too.
--
-- KEYS  streams
-- ARGV  1 group; 2 consumer
-- Returns the number of streams on which it still holds jobs.
local holding = 0
for i = 1, #KEYS do
  if #redis.call('XPENDING', KEYS[i], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then
    holding = holding + 1
  else
    redis.call('XGROUP', 'DELCONSUMER', KEYS[i], ARGV[1], ARGV[2])
  end
end
return holding
