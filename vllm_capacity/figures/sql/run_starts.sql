-- run_starts: when counters of a target started again from zero, and the newest sample before that.
-- grain: one row per (instance, scrape) at which any did; it restarted in (ts_before, ts].
with restarted as (
    select series_id
    from samples
    group by series_id
    having min(run) < max(run)
),
stepped as (  -- sorting only those few is what makes it quick
    select series_id, run, ts, lag(ts) over scrapes as ts_before, lag(run) over scrapes as run_before
    from samples
    join restarted using (series_id)
    window scrapes as (partition by series_id order by ts)
)
select instance, max(ts_before) as ts_before, ts
from stepped
join series using (series_id)
where run > run_before
group by instance, ts
order by instance, ts
