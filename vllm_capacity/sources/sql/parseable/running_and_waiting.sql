-- running_and_waiting: requests running and waiting, by minute: mean, summed over engines.
-- grain: one row per (minute, state).
with by_engine as (
    select
        date_trunc('minute', time_unix_nano) as minute,
        case
            when metric_name in ('vllm:num_requests_running', 'vllm_num_requests_running')
                then 'running'
            else 'waiting'
        end as state,
        avg(data_point_value) as mean_requests,
        max(data_point_value) as max_requests
    from "vllm_metrics"
    where
        metric_name in (
            'vllm:num_requests_running', 'vllm_num_requests_running',
            'vllm:num_requests_waiting', 'vllm_num_requests_waiting'
        )
        and coalesce(data_point_flags, 0) = 0
    group by
        date_trunc('minute', time_unix_nano),
        metric_name,
        "service.instance.id",
        model_name,
        engine
)
select
    minute,
    state,
    sum(mean_requests) as requests,
    max(max_requests) as max_on_one_engine
from by_engine
group by minute, state
order by minute, state
