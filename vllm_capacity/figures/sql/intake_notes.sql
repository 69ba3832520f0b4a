-- intake_notes: what the border found, summed.
-- grain: one row per (check, instance, subject, detail); notes of the part, and those without a time.
-- Others are told by relabelled.sql, contradicted.sql, uncounted.sql and untimed.sql.
-- params: $start, $end.
select
    "check",
    instance,
    subject,
    detail,
    sum(count)::bigint as count,
    min(ts) as first_ts
from intake
where (ts is null or (ts >= $start and ts < $end))
    and "check" not in ('respelled', 'relabelled', 'contradicted', 'uncounted', 'untimed')
group by all
order by "check", instance, subject, detail
