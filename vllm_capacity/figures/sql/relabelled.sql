-- relabelled: series that continued under other labels, and what their metric had counted by then.
-- grain: one row per (instance, check, metric, detail) whose first change is in [$start, $end).
-- params: $start, $end.
-- at_most: how much higher a counter would be if these were new series that count from 0; null for other kinds.
with noted as (
    select "check", instance, subject as metric, detail, sum(count)::bigint as count, min(ts) as first_ts
    from intake
    where "check" in ('respelled', 'relabelled') and ts >= $start and ts < $end
    group by all
),
counted as (
    select noted.metric, noted.instance, noted.detail, samples.series_id, arg_max(samples.value, samples.ts) as value
    from noted
    join series on series.metric = noted.metric and series.instance = noted.instance and series.kind = 'counter'
    join samples on samples.series_id = series.series_id and samples.ts <= noted.first_ts
    group by all
)
select noted.*, sum(counted.value)::double as at_most
from noted
left join counted using (metric, instance, detail)
group by all
order by instance, "check", metric, detail
