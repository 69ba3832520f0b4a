-- requests_per_minute: finished requests, by minute and by how they ended.
-- grain: one row per (minute, finished_reason).
-- A counter only ever says how much there was so far: what it grew by, from sample to sample, is
-- what happened; where it falls, the server has restarted and the new value is all new.
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
