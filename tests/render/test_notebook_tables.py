"""The tables of our notebooks where there is little to show: they say why, and never fail."""

from datetime import timedelta

import pytest

from vllm_capacity import study
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.prices import find_price
from vllm_capacity.plan import Ask, plan
from vllm_capacity.render.sections import capture as capture_tables
from vllm_capacity.render.sections import claim as claim_tables
from vllm_capacity.render.sections import cost as cost_tables
from vllm_capacity.render.sections import latency as latency_tables
from vllm_capacity.render.sections import plan as plan_frames
from vllm_capacity.render.sections import saturation as saturation_tables
from vllm_capacity.render.text import said
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
        plan_frames.plan_verdict(planned, planned["options"], model="any", requests_per_second=1.0),
    ]
    assert [text for text in map(repr, shown) if not text or "None" in text] == []
    assert "it is not known how many replicas it takes" in repr(shown[-1])


WHAT_IS_KNOWN = {
    "a capacity": (Estimate.exact(4, "sized"), "For this window's load (own, 3.20 requests/s) it"),
    "none": (
        Estimate.unknown("too light"),
        "For this window's load (own, 3.20 requests/s) it is not known how many replicas it takes: "
        "too light. Apart from this window",
    ),
}


@pytest.mark.parametrize("known", WHAT_IS_KNOWN)
def test_verdict_of_a_plan_names_the_model_and_the_load_of_each_half(known):
    replicas, start = WHAT_IS_KNOWN[known]
    planned = {
        "model": "own",
        "replicas": replicas.as_dict(),
        "demand_requests_per_second": Estimate.exact(3.2, "seen").as_dict(),
        "usd_per_month": Estimate.unknown("no price").as_dict(),
        "forecast": {"forecast": None, "reason": "too short to forecast"},
    }
    option = {
        "gpu": "L4",
        "tokens_per_usd": Estimate.exact(1e6, "sheet").as_dict(),
        "replicas": Estimate.exact(2, "sized").as_dict(),
    }
    text = repr(
        plan_frames.plan_verdict(planned, [option], model="Other-8B", requests_per_second=40.0)
    )
    assert text.startswith(start)
    assert "for Other-8B at 40.0 requests/s and from the rate measured elsewhere" in text
    assert text.endswith("comes from L4, 2 of them, spares included.")


def test_what_replicas_carry_is_said_to_leave_out_spares_and_headroom(sweep):
    planned = plan(sweep, Ask())
    policy = Policy(spare_replicas=2, headroom_ratio=0.3)
    shown = plan_frames.enough_until(planned, policy, growth_ratio_per_month=0.1)
    assert (
        "without the 2 spares and with 30\xa0% of each other replica kept free"
        in (shown.content["caption"])
    )


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
