-- points_children: every series among the points that were really observed, with its labels.
-- grain: one row per identity.
-- reads: points
select
    identity,
    any_value(columns(* exclude (
        identity, ts, arrived, started, value, count, sum, counts, flags
    ))),
    min(ts) as first,
    min(started) filter (where started > timestamp '1971-01-01') as started
from points
where flags = 0
group by identity
order by identity
