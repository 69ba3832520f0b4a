-- series: every series of the window, with its labels.
-- grain: one row per series_id.
select * from series
