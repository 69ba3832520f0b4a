-- counter_increase: the exact increase of every wanted counter over a part of the window.
-- grain: one row per series with a sample in [$start, $end).
-- params: $metrics (list), $start, $end.
-- A state is the last sample of a run on one side of $start; an increase is state minus state before it.
-- The base is the last sample before $start, so increases of adjoining parts add up.
-- base_ts is when the target was last scraped before $start: a series that was absent for longer
-- (its process ended, or never had it) does not lengthen the time in which the counters grew.
with wanted as (
    select series_id, metric, instance, engine, model_name, labels, starts_at_zero
    from series
    where list_contains($metrics, metric) and kind = 'counter'
),
states as (
    select
        series_id,
        run,
        ts >= $start as is_inside,
        arg_min(value, ts) as first,
        arg_max(value, ts) as last,
        min(ts) as t0,
        max(ts) as t1
    from samples
    semi join wanted using (series_id)
    where ts < $end
    group by series_id, run, ts >= $start
),
stepped as (
    select
        states.*,
        lag(last) over before as last_before,
        lag(run) over before as run_before,
        lag(t1) over before as ts_before,
        max(t1) filter (not is_inside) over (partition by instance) as target_before
    from states
    join wanted using (series_id)
    window before as (partition by series_id order by run, is_inside)
)
select
    wanted.*,
    sum(
        case
            when last_before is null and starts_at_zero then last
            when last_before is null then last - first
            when run = run_before then last - last_before
            else last
        end
    )::double as increase,
    min(case when ts_before < $start then target_before else coalesce(ts_before, t0) end) as base_ts,
    max(t1) as last_ts
from stepped
join wanted using (series_id)
where is_inside
group by all
order by metric, instance, engine, labels, series_id
