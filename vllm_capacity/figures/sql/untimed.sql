-- untimed: where nobody knows how much a server counted unread, for a clock was set.
-- grain: one row per (target, time): the first scrape after it; null: of the target as a whole.
select instance, ts, min(detail) as reason
from intake
where "check" = 'untimed'
group by instance, ts
order by instance, ts
