-- gauge_minutes: the mean, minimum and maximum of the wanted gauges in each minute of a downsampled window.
-- grain: one row per (series, minute) that begins in [$start, $end); over its n samples.
-- params: $metrics (list), $start, $end.
select
    metric,
    instance,
    engine,
    labels,
    t0 as ts,
    n,
    sum / n as value,
    min,
    max
from minutes
join series using (series_id)
where list_contains($metrics, metric) and t0 >= $start and t0 < $end
order by metric, instance, engine, labels, ts
