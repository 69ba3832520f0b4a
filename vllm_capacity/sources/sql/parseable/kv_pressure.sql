-- kv_pressure: the three signs of a full KV cache together, by minute and engine.
-- grain: one row per (minute, target, engine).
-- A full cache alone is not saturation: a queue can grow at 30 %, and a full cache without a queue is fine.
with samples as (
    select
        date_trunc('minute', time_unix_nano) as minute,
        "service.instance.id" as target,
        engine,
        metric_name,
        data_point_value as value,
        lag(data_point_value) over (
            partition by metric_name, "service.instance.id", model_name, engine
            order by time_unix_nano
        ) as previous
    from "vllm_metrics"
    where
        metric_name in (
            'vllm:kv_cache_usage_perc', 'vllm:num_requests_waiting', 'vllm:num_preemptions_total'
        )
        and coalesce(data_point_flags, 0) = 0
)
select
    minute,
    target,
    engine,
    avg(case when metric_name = 'vllm:kv_cache_usage_perc' then value end) as kv_cache_mean_ratio,
    avg(case when metric_name = 'vllm:num_requests_waiting' then value end) as waiting_requests,
    sum(
        case
            when metric_name <> 'vllm:num_preemptions_total' or previous is null then 0
            when value >= previous then value - previous
            else value
        end
    ) as preemptions
from samples
group by minute, target, engine
order by minute, target, engine
