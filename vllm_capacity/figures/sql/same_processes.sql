-- same_processes: targets that are one process under two names.
-- grain: one row per pair: the same start to the last digit, and one count that grows through the
-- samples of both, in order of time, with more than $fewest values. At one instant both must show
-- the same count.
-- params: $metric (a counter that grows with all work), $fewest.
with starts as (
    select instance, arg_max(value, ts) as started
    from samples
    join series using (series_id)
    where metric = 'process_start_time_seconds' and value > 0
    group by instance
),
pairs as (
    select one.instance, other.instance as other, one.started
    from starts as one
    join starts as other on one.started = other.started and one.instance < other.instance
),
counts as (
    select instance, ts, sum(value) as value
    from samples
    join series using (series_id)
    where metric = $metric and instance in (select unnest([instance, other]) from pairs)
    group by instance, ts
),
together as (
    select
        pairs.instance,
        pairs.other,
        counts.value,
        lag(counts.value) over (
            partition by pairs.instance, pairs.other
            order by counts.ts, counts.value desc  -- two counts at one moment: two processes
        ) as value_before
    from pairs
    join counts on counts.instance in (pairs.instance, pairs.other)
    where epoch(counts.ts) >= pairs.started
)
select instance, other
from together
group by instance, other
having bool_and(coalesce(value >= value_before, true)) and count(distinct value) > $fewest
order by instance, other
