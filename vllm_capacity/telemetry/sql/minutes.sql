-- minutes: the state of every counter and gauge at the end of every minute, and what a gauge did in it.
-- grain: one row per (series, minute, run); `first`, `last` at `t0`, `t1`; n samples.
-- reads: hour, one hour of `samples`.
-- epoch_us, never date_trunc: on a TIMESTAMPTZ that is ten times dearer.
select
    series_id,
    make_timestamptz((epoch_us(ts) // 60000000) * 60000000) as minute,
    run,
    arg_min(value, ts) as first,
    arg_max(value, ts) as last,
    min(ts) as t0,
    max(ts) as t1,
    count(*)::int as n,
    min(value) as min,
    max(value) as max,
    sum(value)::double as sum
from hour
group by series_id, epoch_us(ts) // 60000000, run
order by series_id, minute, run
