-- tokens_per_minute: prompt and generated tokens, by minute, and tokens per second.
-- grain: one row per (minute, kind of token).
-- Increases of counters, not sums of their values: see requests_per_minute. An increase is counted in
-- the minute of the later sample; `seconds` is the time it took. If samples are missing, that is
-- longer than a minute, and the rate is the mean over that time. It is null after a restart, since
-- these rows do not show when the new process began to count.
with samples as (
    select
        metric_name,
        "service.instance.id" as target,
        model_name,
        engine,
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
        ) as previous,
        lag(time_unix_nano) over (
            partition by metric_name, "service.instance.id", model_name, engine
            order by time_unix_nano
        ) as previous_ts
    from "vllm_metrics"
    where
        metric_name in (
            'vllm:prompt_tokens_total', 'vllm_prompt_tokens_total',
            'vllm:generation_tokens_total', 'vllm_generation_tokens_total'
        )
        and coalesce(data_point_flags, 0) = 0
),
by_engine as (
    select
        date_trunc('minute', ts) as minute,
        tokens_of,
        sum(case when value >= previous then value - previous else value end) as tokens,
        sum(date_part('epoch', ts) - date_part('epoch', previous_ts)) as seconds,
        max(case when value < previous then 1 else 0 end) as has_restart
    from samples
    where previous is not null
    group by date_trunc('minute', ts), tokens_of, metric_name, target, model_name, engine
)
select
    minute,
    tokens_of,
    sum(tokens) as tokens,
    max(seconds) as seconds,
    case
        when max(has_restart) = 0 then sum(tokens / nullif(seconds, 0))
    end as tokens_per_second
from by_engine
group by minute, tokens_of
order by minute, tokens_of
