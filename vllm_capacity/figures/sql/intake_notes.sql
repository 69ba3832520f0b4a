-- intake_notes: the notes of ingestion, summed.
-- grain: one row per (check, instance, subject, detail); notes in [$start, $end), and those without a time.
-- Notes of other kinds are read by relabelled.sql, contradicted.sql, uncounted.sql and untimed.sql.
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
