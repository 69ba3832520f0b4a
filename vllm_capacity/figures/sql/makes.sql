-- makes: the labels that may describe an engine's KV cache and GPU.
-- grain: one row per series of the families asked for.
-- params: $metrics, a list of families.
select instance, engine, labels
from series
where list_contains($metrics, metric)
order by instance, engine, metric, labels
