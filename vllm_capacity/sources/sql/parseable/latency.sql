-- latency: p50, p95 and p99 of e2e_request_latency_seconds, by minute.
-- grain: one row per minute in which anything was observed.
-- A histogram is one cumulative counter per bucket, so percentile_cont over its rows is meaningless.
-- Instead, bucket increases are summed over engines, and the quantile is interpolated linearly within
-- the bucket that contains it, as PromQL does; null if that is the last, open bucket. If any bucket
-- falls, the server has restarted and its new counts are all new. All engines must have the same
-- bucket edges, as engines of one vLLM version do for latencies.
with states as (
    select
        time_unix_nano as ts,
        "service.instance.id" as target,
        model_name,
        engine,
        data_point_explicit_bounds as edges,
        unnest(data_point_bucket_counts) as observed,
        unnest(range(1, cast(cardinality(data_point_bucket_counts) as bigint) + 1)) as bucket
    from "vllm_metrics"
    where
        metric_name in ('vllm:e2e_request_latency_seconds', 'vllm_e2e_request_latency_seconds')
        and coalesce(data_point_flags, 0) = 0
),
steps as (
    select
        *,
        lag(observed) over (
            partition by target, model_name, engine, bucket order by ts
        ) as previous
    from states
),
restarts as (
    select
        *,
        max(case when observed < previous then 1 else 0 end) over (
            partition by target, model_name, engine, ts
        ) as is_restart
    from steps
),
buckets as (
    select
        date_trunc('minute', ts) as minute,
        bucket,
        max(edges[bucket]) as upper,
        coalesce(max(edges[bucket - 1]), 0) as lower,
        sum(case when is_restart = 1 then observed else observed - previous end) as grown
    from restarts
    where previous is not null
    group by date_trunc('minute', ts), bucket
),
totals as (
    select
        *,
        sum(grown) over (partition by minute order by bucket) as so_far,
        sum(grown) over (partition by minute) as total
    from buckets
)
select
    minute,
    max(total) as observed,
    max(case when so_far >= 0.5 * total and so_far - grown < 0.5 * total
        then lower + (upper - lower) * (0.5 * total - so_far + grown) / grown end) as p50_seconds,
    max(case when so_far >= 0.95 * total and so_far - grown < 0.95 * total
        then lower + (upper - lower) * (0.95 * total - so_far + grown) / grown end) as p95_seconds,
    max(case when so_far >= 0.99 * total and so_far - grown < 0.99 * total
        then lower + (upper - lower) * (0.99 * total - so_far + grown) / grown end) as p99_seconds
from totals
where total > 0
group by minute
order by minute
