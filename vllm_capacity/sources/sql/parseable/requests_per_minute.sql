-- requests_per_minute: finished requests, by minute and by how they ended.
-- grain: one row per (minute, finished_reason).
-- A counter is cumulative: what happened is its increase from sample to sample. If it falls, the
-- server has restarted and the whole new value is new.
with samples as (
    select
        time_unix_nano as ts,
        finished_reason,
        data_point_value as value,
        lag(data_point_value) over (
            partition by metric_name, "service.instance.id", model_name, engine, finished_reason
            order by time_unix_nano
        ) as previous
    from "vllm_metrics"
    where
        metric_name in ('vllm:request_success_total', 'vllm_request_success_total')
        and coalesce(data_point_flags, 0) = 0
)
select
    date_trunc('minute', ts) as minute,
    finished_reason,
    sum(case when value >= previous then value - previous else value end) as requests
from samples
where previous is not null
group by date_trunc('minute', ts), finished_reason
order by minute, finished_reason
