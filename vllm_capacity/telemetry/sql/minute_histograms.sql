-- minute_histograms: the first and last state of every histogram in every minute.
-- grain: one row per (series, minute, run); bucket counts are per bucket and cumulative over time.
-- reads: hour, one hour of `histograms`.
select
    series_id,
    make_timestamptz((epoch_us(ts) // 60000000) * 60000000) as minute,
    run,
    arg_min(count, ts) as first_count,
    arg_min(sum, ts) as first_sum,
    arg_min(counts, ts) as first_counts,
    arg_max(count, ts) as count,
    arg_max(sum, ts) as sum,
    arg_max(counts, ts) as counts,
    min(ts) as t0,
    max(ts) as t1,
    count(*)::int as n
from hour
group by series_id, epoch_us(ts) // 60000000, run
order by series_id, minute, run
