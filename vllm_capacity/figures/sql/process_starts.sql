-- process_starts: every start time that a process reported.
-- grain: one row per (series, scrape).
select series_id, ts, value
from samples
join series using (series_id)
where metric = 'process_start_time_seconds'
order by series_id, ts
