-- points_histograms: the histograms among the points, without stale markers.
-- grain: one row per (series, point); a point sent twice is there twice.
-- reads: points, children
select
    children.child,
    points.ts,
    list_sum(points.counts)::double as count,
    points.sum,
    points.counts,
    epoch_us(points.arrived) as arrival
from points
join children using (identity)
where
    points.flags = 0
    and points.wire_kind = 'histogram'
    and len(points.counts) = len(points.bounds) + 1
order by child, ts, arrival, count
