-- request_failures: requests that ended in an error or were aborted, by minute.
-- grain: one row per (minute, finished_reason).
-- Not included: vLLM counts neither clients that hung up nor requests refused before they reach the engine.
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
        and finished_reason in ('error', 'abort')
        and coalesce(data_point_flags, 0) = 0
)
select
    date_trunc('minute', ts) as minute,
    finished_reason,
    sum(case when value >= previous then value - previous else value end) as failures
from samples
where previous is not null
group by date_trunc('minute', ts), finished_reason
order by minute, finished_reason
