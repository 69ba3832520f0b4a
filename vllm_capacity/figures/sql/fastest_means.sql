-- fastest_means: the lowest mean of each wanted histogram, as a measure of how fast servers can be.
-- grain: one row per metric: the lowest mean over stretches of at least $least observations (null if there is
-- none), and the total count and sum.
-- params: $metrics (list), $least.
-- Sums have a fixed order, so that they are the same to the last bit in every run.
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
