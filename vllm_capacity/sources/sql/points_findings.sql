-- points_findings: what was noticed in a slice: stale, late and unreadable points.
-- grain: one row per (check, instance, job, metric).
-- params: $since_seconds, Unix time from which points are examined; $late_seconds, the lag between a sample
--   and its arrival from which it is late; $ahead_seconds, the lead from which a clock is wrong
-- reads: points, children
with examined as (
    select
        instance,
        job,
        metric_name,
        ts,
        flags <> 0 as is_stale,
        child is not null and flags = 0 as is_kept,
        epoch(arrived) - epoch(ts) as lag_seconds,
        case
            when wire_kind = 'histogram' then coalesce(len(counts) <> len(bounds) + 1, true)
            else value is null
        end as is_lost
    from points
    left join children using (identity)
    where epoch(ts) >= $since_seconds
),

found as (
    select 'series' as "check", *, null as seconds from examined where is_stale
    union all
    select 'late', *, lag_seconds from examined where is_kept and lag_seconds > $late_seconds
    union all
    select 'clock', *, -lag_seconds from examined where is_kept and -lag_seconds > $ahead_seconds
    union all
    select 'coverage', *, null from examined where is_kept and is_lost
)

select
    "check",
    instance,
    job,
    metric_name,
    min(ts) as ts,
    count(*) as count,
    max(seconds) as seconds
from found
group by all
order by all
