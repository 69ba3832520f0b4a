-- untimed: where it is unknown how much a server counted between scrapes, because a clock was set.
-- grain: one row per (target, time of the first scrape after it); a null time stands for the whole target.
select instance, ts, min(detail) as reason
from intake
where "check" = 'untimed'
group by instance, ts
order by instance, ts
