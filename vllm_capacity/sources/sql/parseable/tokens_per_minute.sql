-- tokens_per_minute: prompt and generated tokens, by minute; tokens a second on average.
-- grain: one row per (minute, kind of token).
-- Differences of counters, not their sums: see requests_per_minute.
with samples as (
    select
        time_unix_nano as ts,
        case
            when metric_name in ('vllm:prompt_tokens_total', 'vllm_prompt_tokens_total')
                then 'prompt'
            else 'generation'
        end as tokens_of,
        data_point_value as value,
        lag(data_point_value) over (
            partition by metric_name, "service.instance.id", model_name, engine
            order by time_unix_nano
        ) as previous
    from "vllm_metrics"
    where
        metric_name in (
            'vllm:prompt_tokens_total', 'vllm_prompt_tokens_total',
            'vllm:generation_tokens_total', 'vllm_generation_tokens_total'
        )
        and coalesce(data_point_flags, 0) = 0
)
select
    date_trunc('minute', ts) as minute,
    tokens_of,
    sum(case when value >= previous then value - previous else value end) as tokens,
    sum(case when value >= previous then value - previous else value end) / 60
        as tokens_per_second
from samples
where previous is not null
group by date_trunc('minute', ts), tokens_of
order by minute, tokens_of
