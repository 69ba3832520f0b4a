-- adapters: when which LoRA adapters were told to run and to wait.
-- grain: one row per (series of vllm:lora_requests_info, scrape) in [$start, $end).
-- params: $metric, $start, $end.
-- The value is when that state was logged: of a server's states in a scrape the last one is now.
select instance, labels, ts, value
from samples
join series using (series_id)
where metric = $metric and ts >= $start and ts < $end
order by instance, ts, value
