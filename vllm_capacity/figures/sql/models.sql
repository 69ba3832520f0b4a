-- models: the models that the window's series name.
-- grain: one row per model_name.
select distinct model_name from series where model_name is not null order by model_name
