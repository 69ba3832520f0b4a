-- instances: the targets of the window, by name.
-- grain: one row per instance.
select distinct instance from series order by instance
