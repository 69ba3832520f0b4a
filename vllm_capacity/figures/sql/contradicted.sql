-- contradicted: scrapes that were left out because a clock was set and their order cannot be told.
-- grain: one row per target that has such scrapes. They are of the whole window: their stamps are wrong.
select instance, string_agg(detail, '; ' order by detail) as detail, sum(count)::bigint as scrapes
from intake
where "check" = 'contradicted'
group by instance
order by instance
