-- adapters: which LoRA adapters were reported as running or waiting, and when.
-- grain: one row per (series of vllm:lora_requests_info, scrape) in [$start, $end).
-- params: $metric, $start, $end.
-- The value is the time at which that state was logged; of several states in a scrape, the last is current.
select instance, labels, ts, value
from samples
join series using (series_id)
where metric = $metric and ts >= $start and ts < $end
order by instance, ts, value
