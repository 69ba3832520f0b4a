-- attempts: every scrape attempt, whether it succeeded, and which source made it.
-- grain: one row per (instance, source, attempt) before $end. Where there is no `up`, the times of the
-- samples count as attempts, all successful.
-- params: $end.
with watched as (
    select instance, ts, value > 0 as is_good, labels as source
    from samples
    join series using (series_id)
    where metric = 'up' and ts < $end
),
unwatched as (
    select distinct instance, ts, true as is_good, '' as source
    from samples
    join series using (series_id)
    where
        ts < $end
        and metric not in ('up', 'scrape_duration_seconds')
        and instance not in (select instance from watched)
)
select instance, ts, is_good, source from watched
union all
select instance, ts, is_good, source from unwatched
order by instance, ts, source
