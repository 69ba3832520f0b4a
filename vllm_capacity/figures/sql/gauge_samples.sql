-- gauge_samples: every sample of the wanted gauges in a part of the window.
-- grain: one row per (series, scrape) in [$start, $end).
-- params: $metrics (list), $start, $end.
select metric, instance, engine, model_name, labels, ts, value
from samples
join series using (series_id)
where list_contains($metrics, metric) and kind in ('gauge', 'info') and ts >= $start and ts < $end
order by metric, instance, engine, labels, ts
