-- request_failures: requests that the engine ended as errors or that were aborted, by minute.
-- grain: one row per (minute, finished_reason).
-- Blind spot: vLLM counts no client that hung up, and no request refused before the engine saw it.
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
