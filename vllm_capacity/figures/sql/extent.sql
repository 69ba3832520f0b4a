-- extent: the first and the last scrape attempt of any target.
-- grain: one row.
select min(ts) as first, max(ts) as last
from (select ts from samples union all select ts from histograms)
