import itertools

import polars as pl
import pytest
from answer_by_hand import (
    ANSWER,
    ESTIMATES,
    answer,
    estimate,
    extrapolated,
    finding,
    stretch,
    unknown,
)
from snapshot import assert_same

from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.losses import Lost
from vllm_capacity.render.prose import verdict as prose
from vllm_capacity.verdicts.saturation.advice import Advice
from vllm_capacity.verdicts.saturation.fit import imbalance

WHY = "the reason it is not known"
IN_TIME = {"slo__ttft_attainment": estimate(0.99), "slo__itl_attainment": estimate(0.97)}
NO_TARGET = {
    "slo__ttft_attainment": unknown("no target given"),
    "slo__itl_attainment": unknown("no target given"),
    "slo__throughput_output_tokens_per_second": unknown("no latency target was given"),
}
NO_LIMIT = {"saturation__bottleneck": None}


def fleet(*stretches):
    """Regimes over time, each as (engine, from minute, to minute, regime)."""
    rows = [stretch(start, end, name, "seen", engine=e) for e, start, end, name in stretches]
    columns = ("start", "end", "engine", "regime")
    frame = pl.DataFrame({name: [getattr(row, name) for row in rows] for name in columns})
    return {"saturation__regimes": tuple(rows), "saturation__imbalance": imbalance(frame)}


def advised(setting, effect):
    return {"advice": (Advice(setting, "r0/0", "seen", effect),)}


UNBALANCED = fleet(("r0/0", 0, 25, "client-bound"), ("r1/0", 10, 25, "kv-bound"))
CASES = {
    "no target given": NO_TARGET,
    "targets met, below the capacity": IN_TIME,
    "a cost of a cent or more, with an interval": {
        "cost__usd_per_request": estimate(0.25, 0.2, 0.3)
    },
    "a wide interval is called rough": {"cost__usd_per_request": estimate(0.25, 0.05, 0.9)},
    "requests lost in restarts": {"requests__lost": Lost(0, 84.2)},
    "requests lost without a bound": {
        "requests__lost": Lost(0, None, WHY),
        "cost__usd_per_request": Estimate.at_most(0.25, "the bill", reason=WHY),
    },
    "cost per request unknown": {"cost__usd_per_request": unknown(WHY)},
    "throughput within the targets unknown": {
        "slo__throughput_output_tokens_per_second": unknown(WHY)
    },
    "idle without dollars": {"cost__idle_usd": unknown(WHY)},
    "a full server": {"cost__utilization": estimate(0.97, 0.95, 0.99)},
    "nothing generated": {"cost__utilization": estimate(0.0)},
    "utilization unknown": {"cost__utilization": unknown(WHY)},
    "capacity is a lower bound": {
        "saturation__capacity_output_tokens_per_second": Estimate.at_least(
            50.0, "the best minute", reason=WHY
        ),
        "saturation__headroom_ratio": Estimate.at_least(0.1, "the best minute", reason=WHY),
        "cost__utilization": Estimate.at_most(0.9, "the best minute", reason=WHY),
        "cost__idle_usd": Estimate.at_least(0.2, "the best minute", reason=WHY),
    },
    "capacity extrapolated": {
        "saturation__capacity_kind": "extrapolated",
        "saturation__capacity_output_tokens_per_second": extrapolated(300.0, 200.0, 400.0),
    },
    "no headroom": {"saturation__headroom_ratio": estimate(0.02)},
    "limited by max_num_seqs": {"saturation__bottleneck": "scheduler-bound"},
    "limited by prefill": {"saturation__bottleneck": "prefill-bound"},
    "no bottleneck": {**NO_LIMIT, **IN_TIME},
    "no bottleneck, a target missed": {**NO_LIMIT, "slo__itl_attainment": unknown("no target")},
    "idle throughout": {**NO_LIMIT, "saturation__regime": "idle"},
    "bottleneck unknown": {**NO_LIMIT, "saturation__regime": "unknown"},
    "no price": {**NO_LIMIT, "cost__allocation_usd": unknown(WHY)},
    "no bottleneck, capacity unknown": {
        **NO_LIMIT,
        "saturation__capacity_output_tokens_per_second": unknown(WHY),
    },
    "errors in the telemetry": {"quality": (finding("coverage", "error", 9),)},
    "one engine full beside one with room": UNBALANCED,
    "of many engines with room a few are named": fleet(
        ("r0/0", 0, 25, "idle"),
        *((f"r{i}/0", 0, 25, "client-bound") for i in (2, 3, 4)),
        ("r1/0", 10, 25, "kv-bound"),
    ),
    "what more KV memory brings": advised("KV memory", extrapolated(0.16, 0.05, 0.3)),
    "what a setting brings": advised("max_num_seqs", extrapolated(0.16, 0.05, 0.3)),
    "replicas not needed": advised("replicas", estimate(0.5)),
    "advice of an unknown effect": advised("max_num_batched_tokens", unknown(WHY)),
}


def written(**changes):
    return " ".join(prose.verdict(answer(**changes))).replace("\xa0", " ")


def test_verdicts_match_their_snapshots():
    """The first case is whole; of each other stand the sentences that it does not have."""
    first = prose.verdict(ANSWER)
    shown = ["# every figure known, targets missed", *first]
    for name, changes in CASES.items():
        shown += ["", f"# {name}"]
        shown += [text for text in prose.verdict(answer(**changes)) if text not in first]
    assert_same("verdict", "\n".join(shown).replace("\xa0", " "))


@pytest.mark.parametrize("term", ["cost per request", "Utilization", "headroom", "bottleneck"])
def test_verdict_has_the_term_to_search_for(term):
    assert term in written()


@pytest.mark.parametrize(
    ("changes", "unsaid"),
    [
        pytest.param(NO_TARGET, "target", id="no target given, none spoken of"),
        pytest.param(
            {**IN_TIME, "slo__throughput_output_tokens_per_second": estimate(300.0)},
            "target",
            id="targets met up to saturation are no news",
        ),
        pytest.param({}, "balance", id="a single engine shares with none"),
        pytest.param(
            fleet(("r0/0", 0, 25, "kv-bound"), ("r1/0", 0, 25, "kv-bound")),
            "balance",
            id="engines that are all full",
        ),
        pytest.param(
            fleet(("r0/0", 0, 10, "client-bound"), ("r1/0", 10, 25, "kv-bound")),
            "balance",
            id="an engine gone before the other was full",
        ),
        pytest.param(
            fleet(("r0/0", 0, 25, "unknown"), ("r1/0", 10, 25, "kv-bound")),
            "balance",
            id="an engine whose load is unknown",
        ),
        pytest.param(
            {"cost__usd_per_request": estimate(0.25, 0.2499, 0.2501)},
            "Exact",
            id="an interval that reads as one number is not exact",
        ),
    ],
)
def test_verdict_does_not_contain(changes, unsaid):
    assert unsaid not in written(**changes)


def test_reason_of_an_unknown_figure_is_given():
    named = {
        "cost__usd_per_request",
        "cost__utilization",
        "slo__throughput_output_tokens_per_second",
    }
    assert {path for path in ESTIMATES if WHY in written(**{path: unknown(WHY)})} == named


def _unknowns():
    """Every choice of up to two estimates of the answer to be unknown."""
    return [chosen for n in range(3) for chosen in itertools.combinations(ESTIMATES, n)]


def test_no_sentence_has_a_blank_whatever_is_unknown():
    found = [
        text
        for paths in _unknowns()
        for limit in ("kv-bound", None)
        for text in prose.verdict(
            answer(saturation__bottleneck=limit, **{path: unknown(WHY) for path in paths})
        )
        if "None" in text or "  " in text or not text.endswith(".") or ".." in text
    ]
    assert found == []


def test_a_fleets_verdict_begins_with_the_bill_and_omits_reasons_by_engine():
    why = "capacity was not reached on 2 of 8 engines (a, b): tokens came as fast as ever"
    bound = Estimate.at_most(0.26, reason=why)
    first, used, *_ = prose.verdict(answer(window__engines=8, cost__utilization=bound))
    assert first.startswith("The bill was $2.00 for 0.417 h. The cost per request is")
    assert used.endswith("capacity was not reached on 2 of 8 engines (a, b).")
    alone = prose.verdict(answer(window__engines=1, cost__utilization=bound))[1]
    assert alone.endswith("tokens came as fast as ever.")


def test_simulated_telemetry_comes_first():
    assert prose.verdict(ANSWER, is_simulated=True)[0] == prose.SIMULATED


@pytest.mark.parametrize(
    ("severities", "word"),
    [
        pytest.param([], "good", id="nothing found"),
        pytest.param(["info", "info"], "good", id="info affects no figure"),
        pytest.param(["info", "warning"], "usable", id="a warning"),
        pytest.param(["warning", "error"], "poor", id="the worst finding decides"),
    ],
)
def test_quality_summary(severities, word):
    quality = tuple(finding("gap", each) for each in severities)
    assert prose.quality_word(answer(quality=quality))[0] == word
