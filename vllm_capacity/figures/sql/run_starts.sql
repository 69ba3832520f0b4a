-- run_starts: where a series started again from zero, and the sample before that.
-- grain: one row per (series, run after the first); the restart lies in (ts_before, ts].
with stepped as (
    select series_id, run, ts, lag(ts) over scrapes as ts_before, lag(run) over scrapes as run_before
    from samples
    window scrapes as (partition by series_id order by ts)
)
select instance, engine, metric, ts_before, ts
from stepped
join series using (series_id)
where run > run_before
union all
select instance, engine, metric, ts_before, ts
from (
    select
        series_id,
        ts,
        value,
        lag(ts) over scrapes as ts_before,
        lag(value) over scrapes as value_before
    from samples
    window scrapes as (partition by series_id order by ts)
)
join series using (series_id)
where metric = 'process_start_time_seconds' and value != value_before
order by instance, ts, ts_before
