"""The tables of our notebooks where there is little to show: they say why, and never fail."""

from datetime import timedelta

import pytest

from vllm_capacity import study
from vllm_capacity.facts.prices import find_price
from vllm_capacity.pages import (
    capture_tables,
    claim_tables,
    cost_tables,
    latency_tables,
    plan_frames,
    saturation_tables,
)
from vllm_capacity.pages.said import said
from vllm_capacity.planning import Ask, plan
from vllm_capacity.verdicts.sizing import Policy

CLAIM = claim_tables.Claim(3.15, 5138, 1631, 0.001005)
API = {"usd_per_million_input": 0.05, "usd_per_million_output": 0.2, "note": "assumed"}
OF_A_STUDY = {
    "scrapes": capture_tables.scrape_table,
    "interruptions": capture_tables.interruptions,
    "losses": capture_tables.losses,
    "captures": lambda asked: capture_tables.captures_compared(asked, asked),
    "capture": capture_tables.capture_verdict,
    "work": latency_tables.work,
    "quantiles": latency_tables.quantiles,
    "waits": latency_tables.waits,
    "promises": latency_tables.promises,
    "latency": latency_tables.latency_verdict,
    "regimes": saturation_tables.regime_times,
    "limits": saturation_tables.limits,
    "light": saturation_tables.foreseen_from_light,
    "overload": saturation_tables.overload,
    "saturation": saturation_tables.saturation_verdict,
    "bill": cost_tables.bill_lines,
    "engines": lambda asked: cost_tables.bill_by(asked, "engine"),
    "api": lambda asked: cost_tables.against_api(asked, **API),
    "cost": cost_tables.cost_verdict,
    "reproduced": lambda asked: claim_tables.reproduced(asked, CLAIM),
    "implied": lambda asked: claim_tables.implied_price(asked, CLAIM),
    "used": claim_tables.use_of_gpu,
}


@pytest.fixture(scope="module")
def idle(sweep):
    """The first ten seconds of the sweep, before its first request, without price or target."""
    begun = sweep.extent.start + timedelta(seconds=10)
    return study(str(sweep.path), end=begun.isoformat())


@pytest.mark.parametrize(
    "table", [pytest.param(made, id=name) for name, made in OF_A_STUDY.items()]
)
def test_idle_part_without_price_is_told_without_a_blank_or_a_none(table, idle):
    text = repr(table(idle))
    assert text
    assert "None" not in text
    assert "nan" not in text


@pytest.mark.parametrize(
    ("verdict", "said_why"),
    [
        pytest.param(latency_tables.latency_verdict, "No first token was observed", id="latency"),
        pytest.param(saturation_tables.saturation_verdict, "is not known", id="saturation"),
        pytest.param(cost_tables.cost_verdict, "no price given", id="cost"),
        pytest.param(capture_tables.capture_verdict, "Yes", id="capture"),
    ],
)
def test_verdict_on_an_idle_part_says_why_it_is_none(verdict, said_why, idle):
    assert said_why in repr(verdict(idle))


def test_plan_of_an_idle_part_says_why_there_is_none(idle):
    planned = plan(idle.opened, Ask(), start=idle.part.start, end=idle.part.end)
    shown = [
        plan_frames.needs(planned),
        plan_frames.queueing(planned),
        plan_frames.cases(planned),
        plan_frames.enough_until(planned, Policy(), growth_ratio_per_month=0.1),
        plan_frames.demand_ahead(planned),
        plan_frames.options(planned["options"], reason_for_none=planned["options_reason"]),
        plan_frames.plan_verdict(planned, planned["options"], model="any"),
    ]
    assert [text for text in map(repr, shown) if not text or "None" in text] == []
    assert "is not known" in repr(shown[-1])


def test_claim_whose_price_is_another_is_told(examples):
    asked = study(
        str(examples / "a100-gpt-oss-20b"), price="A100-80GB-PCIe RunPod secure 2026-11-09"
    )
    said_of_it = repr(claim_tables.implied_price(asked, CLAIM))
    reproduced = {row[0]: row[4] for row in claim_tables.reproduced(asked, CLAIM).content["rows"]}
    assert f"is not what RunPod {find_price('A100-80GB-PCIe RunPod secure 2026-11-09').tier}" in (
        said_of_it
    )
    assert reproduced == {
        "hours": "yes",
        "successful requests": "yes",
        "requests an hour": "yes",
        "dollars a request": "no",
    }


def test_sentence_escapes_what_telemetry_named():
    shown = said("a model <script>alert(1)</script> ran.")._repr_mimebundle_()
    assert "<p>A model &lt;script&gt;alert(1)&lt;/script&gt; ran.</p>" in shown["text/html"]


def test_two_prices_in_a_sentence_are_not_taken_for_a_formula():
    assert 'class="mathjax_ignore' in said("from $1 to $2.")._repr_mimebundle_()["text/html"]
