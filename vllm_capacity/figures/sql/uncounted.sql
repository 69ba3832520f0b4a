-- uncounted: by how much counters grew in scrapes that were left out because a clock was set.
-- grain: one row per (target, metric) that has such scrapes, over the whole window.
-- params: $metrics (list).
select instance, subject as metric, sum(count)::double as grown
from intake
where "check" = 'uncounted' and list_contains($metrics, subject)
group by instance, subject
order by instance, subject
