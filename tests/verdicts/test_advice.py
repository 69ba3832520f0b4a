import pytest
from made_steps import made_steps, queued, steady

from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.steps import engine_steps
from vllm_capacity.verdicts.saturation.advice import advice
from vllm_capacity.verdicts.saturation.fit import engine_fits
from vllm_capacity.verdicts.sizing import BusyTime, Policy, Pool, surplus

LIGHTER = [
    steady(n, 300 * n / (n + 10), kv_cache_ratio_mean=0.02 * n, kv_cache_ratio_max=0.02 * n)
    for n in (1, 2, 4, 6)
    for _ in range(3)
]
BELOW = {"at_ceiling_share": 0.1}
PREFILL = queued(4, 20, 10, running_max=9, prompt_tokens_per_second=5000, **BELOW)
SCHEDULER = queued(8, 133, 20, kv_cache_ratio_mean=0.16, kv_cache_ratio_max=0.2)
KV = queued(20, 200, 20, kv_cache_ratio_mean=0.95, kv_cache_ratio_max=1.0, preemptions=5, **BELOW)


def advised(*changes, **more):
    return advice(engine_fits(made_steps(*changes)), **more)


@pytest.mark.parametrize(
    ("steps", "hit_ratio", "settings"),
    [
        pytest.param(LIGHTER, None, [], id="clients decide: silence"),
        pytest.param([*LIGHTER, *[SCHEDULER] * 8], None, ["max_num_seqs"], id="scheduler-bound"),
        pytest.param([*LIGHTER, *[KV] * 8], None, ["KV memory"], id="kv-bound"),
        pytest.param(
            [*LIGHTER, *[KV] * 8], 0.02, ["KV memory", "prefix caching"], id="hardly a cache hit"
        ),
        pytest.param([*LIGHTER, *[KV] * 8], 0.6, ["KV memory"], id="the cache hits already"),
        pytest.param(
            [*LIGHTER, *[PREFILL] * 8],
            0.0,
            ["max_num_batched_tokens", "prefix caching"],
            id="prefill-bound",
        ),
        pytest.param([], None, [], id="nothing observed: silence"),
    ],
)
def test_settings(steps, hit_ratio, settings):
    found = advised(*steps, prefix_cache_hit_ratio=hit_ratio)
    assert [one.setting for one in found] == settings


def test_the_effect_of_more_sequences_is_bounded_by_proportion():
    (found,) = advised(*LIGHTER, *[SCHEDULER] * 8)
    assert found.effect.low < 300 * 28 / 38 / 133 - 1 < found.effect.high
    assert found.effect.high <= 28 / 8 - 1
    assert "8.0 requests ran and 20.0 waited" in found.evidence


def test_an_unknown_effect_has_a_reason():
    (found,) = advised(*[PREFILL] * 8)
    assert "token budget" in found.effect.reason


def pool(replicas, tokens_per_second):
    asked = BusyTime(Estimate.exact(tokens_per_second, "the busiest hour"))
    capacity = Estimate.known(90, 100, 110, "held")
    return surplus({"m": Pool(replicas, asked, capacity, Estimate.exact(2.0, "$2"))}, Policy())


@pytest.mark.parametrize(
    ("found", "effect"),
    [
        pytest.param(pool(4, 100), 0.25, id="a replica of four that was not needed"),
        pytest.param(pool(3, 100), None, id="none to go"),
        pytest.param(pool(1, 0.1), None, id="a single replica"),
    ],
)
def test_replicas_never_needed_at_once_are_named(found, effect):
    own = [a for a in advice([], surplus=found) if a.setting == "replicas"]
    assert [one.effect.low for one in own] == ([] if effect is None else [effect])
    assert all(one.engine == "fleet" for one in own)


def test_recorded_sweep_needs_kv_memory_first(sweep):
    found = advice(engine_fits(engine_steps(sweep, time_range=sweep.extent)))
    assert [one.setting for one in found] == ["KV memory"]
    assert 0 <= found[0].effect.low < found[0].effect.high < 1
