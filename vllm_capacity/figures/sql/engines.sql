-- engines: every engine (a pair of target and `engine` label) that was seen before $end.
-- grain: one row per (instance, engine); with its first and last sample.
-- params: $end.
select instance, engine, any_value(model_name) as model_name, min(ts) as first_ts, max(ts) as last_ts
from samples
join series using (series_id)
where
    engine is not null
    and ts < $end
    and metric in (
        'vllm:num_requests_running',
        'vllm:generation_tokens_total',
        'vllm:request_success_total',
        'vllm:kv_cache_usage_perc'
    )
group by instance, engine
order by instance, engine
