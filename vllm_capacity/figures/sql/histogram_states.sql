-- histogram_states: the first and last state of every wanted histogram in each step of a part of the window.
-- grain: one row per (series, run, step); step -1 is everything before $start.
-- params: $metrics (list), $start, $end, $step_us, $last_step (which takes in the rest of the part).
-- Counts are per bucket and cumulative over time; the increase is one state minus the one before.
with wanted as (
    select series_id, metric, instance, engine, model_name, bounds, starts_at_zero
    from series
    where list_contains($metrics, metric) and kind = 'histogram'
),
states as (
    select
        series_id,
        run,
        case
            when ts < $start then -1
            else least((epoch_us(ts) - epoch_us($start::timestamptz)) // $step_us, $last_step)
        end as step,
        arg_min(sum, ts) as first_sum,
        arg_min(counts, ts) as first_counts,
        arg_max(sum, ts) as sum,
        arg_max(counts, ts) as counts,
        min(ts) as t0,
        max(ts) as t1
    from histograms
    semi join wanted using (series_id)
    where ts < $end
    group by all
)
select wanted.*, states.* exclude (series_id)
from states
join wanted using (series_id)
order by series_id, run, step
