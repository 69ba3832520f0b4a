-- points_intake: what ingestion found: stale, late and unreadable points.
-- grain: one row per (check, instance), unreadable ones per metric.
-- params: $since_seconds, Unix time from which points are examined; $late_seconds, the lag between a sample
--   and its arrival from which it is late; $ahead_seconds, the lead from which a clock is wrong
-- reads: points, children
select
    'series' as "check",
    instance,
    min(ts) as ts,
    'stale markers' as subject,
    'the target stopped exposing ' || count(distinct metric_name)
        || ' families; their stale markers were dropped' as detail,
    count(*) as count
from points
where
    flags <> 0
    and epoch(ts) >= $since_seconds
    and instance in (select points.instance from points join children using (identity))
group by instance
union all
select
    'late' as "check",
    instance,
    min(ts) as ts,
    'arrival' as subject,
    'arrived up to ' || floor(max(epoch(arrived) - epoch(ts)))::bigint
        || ' s after it was sampled' as detail,
    count(*) as count
from points
join children using (identity)
where
    flags = 0
    and epoch(ts) >= $since_seconds
    and epoch(arrived) - epoch(ts) > $late_seconds
group by instance
union all
select
    'clock' as "check",
    instance,
    min(ts) as ts,
    'arrival' as subject,
    'sampled up to ' || ceil(max(epoch(ts) - epoch(arrived)))::bigint
        || ' s after it arrived: the Collector''s clock is ahead of the store''s' as detail,
    count(*) as count
from points
join children using (identity)
where
    flags = 0
    and epoch(ts) >= $since_seconds
    and epoch(ts) - epoch(arrived) > $ahead_seconds
group by instance
union all
select
    'coverage' as "check",
    instance,
    min(ts) as ts,
    metric_name as subject,
    'the value of the point was lost on its way to the store' as detail,
    count(*) as count
from points
join children using (identity)
where
    flags = 0
    and epoch(ts) >= $since_seconds
    and case
        when wire_kind = 'histogram' then coalesce(len(counts) <> len(bounds) + 1, true)
        else value is null
    end
group by instance, metric_name
order by "check", instance, subject
