-- first_values: the first sample of each wanted counter.
-- grain: one row per series that has samples from $start to $end, and none before.
-- params: $metrics (list), $start, $end.
select
    series_id,
    metric,
    instance,
    starts_at_zero,
    min(ts) as first_ts,
    arg_min(value, ts) as first_value
from samples
join series using (series_id)
where list_contains($metrics, metric) and kind = 'counter' and ts < $end
group by series_id, metric, instance, starts_at_zero
having min(ts) >= $start
order by metric, instance, series_id
