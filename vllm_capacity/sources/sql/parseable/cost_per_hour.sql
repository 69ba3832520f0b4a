-- cost_per_hour: what a successful request cost, by hour, in US dollars, idle time included.
-- grain: one row per hour.
-- Set the price of a GPU-hour and the GPUs per engine in the first lines; without a price, dollars
-- are null. A target is billed from scrape attempt to scrape attempt, failed ones too: a GPU that is
-- down is still paid for. In an hour without requests the cost per request is null; dollars are shown.
with price as (
    select cast(null as double) as usd_per_gpu_hour, 1 as gpus_per_engine
),
attempts as (
    select
        "service.instance.id" as target,
        time_unix_nano as ts,
        lag(time_unix_nano) over (
            partition by "service.instance.id" order by time_unix_nano
        ) as previous
    from "vllm_metrics"
    where metric_name = 'up' and coalesce(data_point_flags, 0) = 0
),
engines as (
    select "service.instance.id" as target, count(distinct engine) as engines
    from "vllm_metrics"
    where metric_name in ('vllm:num_requests_running', 'vllm_num_requests_running')
    group by "service.instance.id"
),
billed as (
    select
        date_trunc('hour', attempts.ts) as hour,
        sum(
            (date_part('epoch', attempts.ts) - date_part('epoch', attempts.previous))
            * engines.engines
        ) / 3600 as engine_hours
    from attempts
    join engines on engines.target = attempts.target
    where attempts.previous is not null
    group by date_trunc('hour', attempts.ts)
),
finished as (
    select
        time_unix_nano as ts,
        data_point_value as value,
        lag(data_point_value) over (
            partition by metric_name, "service.instance.id", model_name, engine, finished_reason
            order by time_unix_nano
        ) as previous
    from "vllm_metrics"
    where
        metric_name in ('vllm:request_success_total', 'vllm_request_success_total')
        and finished_reason in ('stop', 'length', 'repetition')
        and coalesce(data_point_flags, 0) = 0
),
requests as (
    select
        date_trunc('hour', ts) as hour,
        sum(case when value >= previous then value - previous else value end) as requests
    from finished
    where previous is not null
    group by date_trunc('hour', ts)
)
select
    billed.hour,
    billed.engine_hours * price.gpus_per_engine as gpu_hours,
    billed.engine_hours * price.gpus_per_engine * price.usd_per_gpu_hour as usd,
    coalesce(requests.requests, 0) as successful_requests,
    billed.engine_hours * price.gpus_per_engine * price.usd_per_gpu_hour
        / nullif(requests.requests, 0) as usd_per_request
from billed
left join requests on requests.hour = billed.hour
cross join price
order by billed.hour
