-- fastest_means: how fast servers were at their fastest: the least mean of the wanted histograms.
-- grain: one row per metric: the least mean of stretches of $least observations or more (null: there is none), and
-- what was observed in all of them.
-- params: $metrics (list), $least.
-- Sums are in order: the same to the last bit, whoever computes them.
with wanted as (
    select series_id, metric
    from series
    where list_contains($metrics, metric) and kind = 'histogram'
),
stepped as (
    select
        series_id,
        metric,
        run,
        count,
        count - lag(count) over scrapes as observed,
        sum - lag(sum) over scrapes as seconds
    from histograms
    join wanted using (series_id)
    window scrapes as (partition by series_id, run order by ts)
),
stretches as (
    select
        metric,
        series_id,
        run,
        floor(count / $least) as stretch,
        sum(observed order by count) as observed,
        sum(seconds order by count) as seconds
    from stepped
    where observed > 0 and seconds > 0
    group by all
)
select
    metric,
    min(seconds / observed) filter (where observed >= $least) as fastest_seconds,
    sum(observed order by series_id, run, stretch) as observed,
    sum(seconds order by series_id, run, stretch) as seconds
from stretches
group by metric
order by metric
