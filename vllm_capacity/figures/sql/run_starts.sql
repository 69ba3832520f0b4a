-- run_starts: when counters of a target started again from zero, and the newest sample before that.
-- grain: one row per (instance, scrape) at which any did; it restarted in (ts_before, ts].
-- Runs of a series are numbered in order of time, so only their ends are put in order.
with runs as (
    select series_id, run, min(ts) as ts, max(ts) as last_ts
    from samples
    group by series_id, run
),
stepped as (
    select series_id, ts, lag(last_ts) over own as ts_before
    from runs
    window own as (partition by series_id order by run)
)
select instance, max(ts_before) as ts_before, ts
from stepped
join series using (series_id)
where ts_before is not null
group by instance, ts
order by instance, ts
