-- contradicted: scrapes that were left out because a clock was set and their order is unknown.
-- grain: one row per target that has such scrapes. They count for the whole window, since their times are wrong.
select instance, string_agg(detail, '; ' order by detail) as detail, sum(count)::bigint as scrapes
from intake
where "check" = 'contradicted'
group by instance
order by instance
