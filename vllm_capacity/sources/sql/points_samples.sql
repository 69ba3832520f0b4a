-- points_samples: the counters and gauges among the points, without stale markers.
-- grain: one row per (series, point); a point sent twice is there twice.
-- reads: points, children
select
    children.child,
    points.ts,
    points.value * children.scale as value,
    epoch_us(points.arrived) as arrival
from points
join children using (identity)
where
    points.flags = 0
    and points.wire_kind <> 'histogram'
    and points.value is not null
order by child, ts, arrival, value
