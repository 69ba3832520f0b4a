-- lifetimes: when each series was first and last seen, and its last value or count.
-- grain: one row per series with a sample before $end.
-- params: $end.
with seen as (
    select series_id, ts, value from samples where ts < $end
    union all
    select series_id, ts, count as value from histograms where ts < $end
),
ends as (
    select
        series_id,
        min(ts) as first_ts,
        max(ts) as last_ts,
        arg_min(value, ts) as first_value,
        arg_max(value, ts) as last_value
    from seen
    group by series_id
)
select
    series_id,
    metric,
    kind,
    instance,
    engine,
    labels,
    bounds,
    exposed,
    starts_at_zero,
    first_ts,
    last_ts,
    first_value,
    last_value
from ends
join series using (series_id)
order by metric, instance, engine, labels, series_id
