-- good_after: the targets that were scraped successfully from $end on.
-- grain: one row per target.
-- params: $end.
select distinct instance
from samples
join series using (series_id)
where ts >= $end and metric not in ('up', 'scrape_duration_seconds')
order by instance
