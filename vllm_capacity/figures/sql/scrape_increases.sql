-- scrape_increases: how much every wanted counter grew from one scrape to the next.
-- grain: one row per (series, scrape) in [$start, $end); increase is null on a first scrape without a base.
-- params: $metrics (list), $start, $end.
with wanted as (
    select series_id, metric, instance, engine, model_name, labels, starts_at_zero
    from series
    where list_contains($metrics, metric) and kind = 'counter'
),
stepped as (
    select
        series_id,
        run,
        ts,
        value,
        lag(value) over scrapes as value_before,
        lag(run) over scrapes as run_before,
        lag(ts) over scrapes as ts_before
    from samples
    semi join wanted using (series_id)
    where ts < $end
    window scrapes as (partition by series_id order by ts)
)
select
    metric,
    instance,
    engine,
    model_name,
    labels,
    ts_before,
    ts,
    case
        when value_before is null and starts_at_zero then value
        when value_before is null then null
        when run = run_before then value - value_before
        else value
    end as increase
from stepped
join wanted using (series_id)
where ts >= $start
order by metric, instance, engine, labels, ts
