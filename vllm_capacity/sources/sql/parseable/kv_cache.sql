-- kv_cache: how full the KV cache was, by minute: 0 to 1, mean and maximum over engines.
-- grain: one row per minute.
-- Ratios are never summed over engines.
select
    date_trunc('minute', time_unix_nano) as minute,
    avg(data_point_value) as kv_cache_mean_ratio,
    max(data_point_value) as kv_cache_max_ratio
from "vllm_metrics"
where
    metric_name in (
        'vllm:kv_cache_usage_perc', 'vllm_kv_cache_usage_perc', 'vllm:gpu_cache_usage_perc'
    )
    and coalesce(data_point_flags, 0) = 0
group by date_trunc('minute', time_unix_nano)
order by minute
