"""The tables and sentences of a window: their contents, or why there is little to show."""

from datetime import timedelta

import pytest
from answer_by_hand import ANSWER, analysis, answer, finding, stretch
from msgspec.structs import replace

from tests.long_window import long_window
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, Slo, pricing
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.prices import find_price
from vllm_capacity.plan import PlanRequest, plan
from vllm_capacity.render.sections import claim as claims
from vllm_capacity.render.sections import cost, header, latency, quality, saturation
from vllm_capacity.render.sections import plan as plans
from vllm_capacity.render.tables import text
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.verdicts.cost.comparisons import Claim
from vllm_capacity.verdicts.hardware.other_gpus import gpu_options
from vllm_capacity.verdicts.saturation.advice import Advice
from vllm_capacity.verdicts.sizing import Policy

CLAIM = Claim(3.15, 5138, 1631, 0.001005)
A100 = "A100-80GB-PCIe RunPod secure 2026-11-09"
API = {"usd_per_million_input": 0.05, "usd_per_million_output": 0.2, "note": "assumed"}
PRICED = Assumptions(pricing(0.5), Slo(2.0, 0.1))
OF_AN_ANALYSIS = {
    "title line": header.title_line,
    "verdict": header.verdict,
    "tiles": header.tiles,
    "tile table": header.tile_table,
    "provenance": header.provenance,
    "definitions": header.definitions,
    "quality": quality.quality_table,
    "scrapes": quality.scrape_table,
    "interruptions": quality.interruption_table,
    "losses": quality.loss_table,
    "captures": lambda found: quality.captures_compared(found, found),
    "capture": quality.capture_verdict,
    "traffic": latency.traffic_table,
    "latency": latency.latency_table,
    "breakdown": latency.latency_breakdown,
    "targets": latency.slo_table,
    "failures": latency.failure_table,
    "latency verdict": latency.latency_verdict,
    "regimes": saturation.regime_table,
    "capacity": saturation.capacity_table,
    "extrapolation": saturation.extrapolation_table,
    "oversaturation": saturation.oversaturation,
    "saturation verdict": saturation.saturation_verdict,
    "costs": cost.cost_table,
    "bill": cost.bill_table,
    "prices": cost.other_prices,
    "changes": cost.first_changes,
    "break-even": lambda found: cost.break_even_table(found, **API),
    "cost verdict": cost.cost_verdict,
    "claim": lambda found: claims.claim_table(found, CLAIM),
    "implied price": lambda found: claims.implied_price(found, CLAIM),
    "claim at prices": lambda found: claims.claim_at_prices(found, CLAIM, [A100]),
    "use of the GPU": claims.gpu_use_table,
    "savings": lambda found: plans.savings_table(found, Policy()),
}
OF_A_PLAN = {
    "sizing": plans.sizing_table,
    "queue": plans.queue_check,
    "sensitivity": plans.sensitivity_table,
    "runway": lambda planned: plans.runway_table(planned, growth_ratio_per_month=0.1),
    "forecast": plans.forecast_table,
    "GPUs": lambda planned: plans.gpu_table(planned.options),
    "rejected": lambda planned: plans.rejected_table(planned.options),
    "verdict": lambda planned: plans.plan_verdict(
        planned, planned.options, model="any", requests_per_second=1.0
    ),
}


@pytest.fixture(scope="module")
def idle(sweep):
    """The first ten seconds of the sweep, before its first request, without price or target."""
    return Analysis.of(sweep, end=sweep.extent.start + timedelta(seconds=10))


@pytest.fixture(scope="module")
def swept(sweep):
    return Analysis.of(sweep, assumptions=PRICED)


@pytest.fixture(scope="module")
def restarts(restarted):
    return Analysis.of(restarted)


@pytest.fixture(scope="module")
def a100(examples):
    window = open_window(examples / "a100-gpt-oss-20b")
    return Analysis.of(window, assumptions=Assumptions(pricing(A100)))


@pytest.fixture(scope="module")
def days(tmp_path_factory):
    path = tmp_path_factory.mktemp("days") / "w"
    long_window(path, days=4)
    return Analysis.of(open_window(path), assumptions=Assumptions(pricing(2.0)))


@pytest.fixture(scope="module")
def planned(swept):
    return plan(swept, PlanRequest(from_gpu="A100-80GB-PCIe", model="openai/gpt-oss-20b"))


def cells(shown, column):
    """The texts of a column, by its title."""
    index = [each.title for each in shown.shown].index(column)
    return [row[index].replace("\xa0", " ") for row in shown.texts]


@pytest.mark.parametrize("name", OF_AN_ANALYSIS)
def test_idle_part_without_price_has_no_blank_and_no_none(name, idle):
    shown = repr(OF_AN_ANALYSIS[name](idle))
    assert shown
    assert "None" not in shown
    assert "nan" not in shown


@pytest.mark.parametrize("name", OF_A_PLAN)
def test_plan_of_an_idle_part_has_no_blank_and_no_none(name, idle):
    shown = repr(OF_A_PLAN[name](plan(idle)))
    assert shown
    assert "None" not in shown


@pytest.mark.parametrize(
    ("verdict", "why"),
    [
        pytest.param(latency.latency_verdict, "No first token was observed", id="latency"),
        pytest.param(saturation.saturation_verdict, "is not known", id="saturation"),
        pytest.param(cost.cost_verdict, "no price given", id="cost"),
        pytest.param(quality.capture_verdict, "The window is complete", id="capture"),
    ],
)
def test_verdict_on_an_idle_part_says_why_there_is_none(verdict, why, idle):
    assert why in repr(verdict(idle))


@pytest.mark.parametrize("name", OF_AN_ANALYSIS)
def test_every_piece_of_a_real_window_is_shown_in_a_notebook(name, swept):
    bundle = OF_AN_ANALYSIS[name](swept)._repr_mimebundle_()
    assert bundle["text/html"]
    assert bundle["text/plain"]


def test_tiles_are_those_of_the_answer(swept):
    labels = ["Cost per request", "Cost per million output tokens", "Tokens per dollar"]
    labels += ["Utilization", "Headroom within the latency targets"]
    labels += ["Headroom, ignoring latency targets", "TTFT within target", "Bill", "Run rate"]
    shown = header.tiles(swept).content["tiles"]
    assert [tile["label"] for tile in shown] == labels
    assert [tile["mid"] for tile in shown] == [
        swept.answer.cost.usd_per_request.mid,
        swept.answer.cost.usd_per_million_output_tokens.mid,
        swept.answer.cost.tokens_per_usd.mid,
        swept.answer.cost.utilization.mid,
        swept.answer.slo_headroom_ratio.mid,
        swept.answer.saturation.headroom_ratio.mid,
        swept.answer.slo.ttft_attainment.mid,
        swept.answer.cost.allocation_usd.mid,
        swept.answer.usd_per_month.mid,
    ]


@pytest.mark.parametrize(
    ("usd", "value", "unit"),
    [
        pytest.param(0.25, "$0.250", "", id="as it is"),
        pytest.param(0.001, "$1.00", "per 1,000 · $0.00100 each", id="below a cent, of a thousand"),
    ],
)
def test_cost_per_request_on_its_tile(usd, value, unit):
    tile = header.tiles_of(answer(cost__usd_per_request=Estimate.exact(usd)))[0]
    assert (tile.value, tile.unit, tile.between) == (value, unit, "exact")


def test_headroom_says_what_the_targets_leave_of_it():
    tile = header.tiles_of(ANSWER)[4]
    assert "Within the latency targets it can serve 220" in tile.basis


def test_unknown_tile_has_its_reason():
    found = header.tiles_of(answer(slo__ttft_attainment=Estimate.unknown("no target given")))[6]
    assert (found.value, found.reason, found.is_known) == ("not known", "no target given", False)


@pytest.mark.parametrize(
    ("assumed", "line"),
    [
        pytest.param(Assumptions(), "no price given", id="none"),
        pytest.param(
            Assumptions(pricing(1.64, note="our cloud")),
            "$1.64 per GPU-hour (our cloud)",
            id="with whose it is",
        ),
        pytest.param(
            Assumptions(pricing(A100)), f"$1.79 per GPU-hour ({find_price(A100).key})", id="a row"
        ),
    ],
)
def test_price_in_words(assumed, line):
    assert header.price_text(analysis(assumptions=assumed)) == line


@pytest.mark.parametrize(
    ("severity", "shown"),
    [
        pytest.param("error", "■ error", id="an error as poor"),
        pytest.param("warning", "▲ warning", id="a warning as usable"),
        pytest.param("info", "● info", id="a note as good"),
    ],
)
def test_finding_has_the_shape_of_its_severity(severity, shown):
    made = quality.quality_table(analysis(answer=answer(quality=(finding("gap", severity),))))
    assert cells(made, "severity") == [shown]
    assert made.frame["severity"].to_list() == [severity]


def advised(*engines):
    why = Estimate.unknown("no batch size is exported")
    return tuple(Advice("max_num_batched_tokens", each, f"{each} waited", why) for each in engines)


@pytest.mark.parametrize(
    ("engines", "shown"),
    [
        pytest.param("ab", ["a", "b"], id="two are two rows"),
        pytest.param("abc", ["a, b, c"], id="three are one"),
        pytest.param("abcde", ["a, b, c and 2 more"], id="of more, three are named"),
    ],
)
def test_advice_that_engines_share_is_given_once(engines, shown):
    made = cost.first_changes(analysis(answer=answer(advice=advised(*engines))))
    assert cells(made, "engine") == shown
    assert cells(made, "evidence")[0] == "a waited"


@pytest.mark.parametrize(("listed", "more"), [(["later"], "2"), (["and 1,005 more"], "1,006")])
def test_times_of_a_finding_are_the_first_two(listed, more):
    when = "; ".join(["2026-11-24T08:00:00.5Z … 2026-11-24T08:01:00Z", "later", "later", *listed])
    found = replace(finding("gap", "info"), when=when)
    made = quality.quality_table(analysis(answer=answer(quality=(found,))))
    shown = f"2026-11-24 08:00:00Z … 2026-11-24 08:01:00Z; later and {more} more"
    assert cells(made, "when (UTC)") == [shown]


TARGETS = ["gpu-1:8000", "gpu-10:8000", "gpu-2:8000", "gpu-3:8000", "gpu-4:8000"]


def per_target(*counts, effect="{}: scraped every 60 s, at most {}"):
    return [
        finding("jitter", "info", count, effect.format(target, count))
        for target, count in zip(TARGETS, counts, strict=False)
    ]


@pytest.mark.parametrize(
    ("findings", "effects"),
    [
        pytest.param(
            per_target(5, 9, 7),
            [
                "gpu-10:8000: scraped every 60 s, at most 9. "
                "The same for 2 others: gpu-1:8000, gpu-2:8000."
            ],
            id="three of one kind are one, as the one that came most often",
        ),
        pytest.param(
            per_target(5, 4, 3, 2, 1),
            [
                "gpu-1:8000: scraped every 60 s, at most 5. "
                "The same for 4 others: gpu-10:8000, gpu-2:8000, gpu-3:8000 and 1 more."
            ],
            id="of many, three are named",
        ),
        pytest.param(
            per_target(5, 9),
            [each.effect for each in per_target(5, 9)],
            id="two stay two",
        ),
        pytest.param(
            [*per_target(5, 9), finding("jitter", "info", 1, "gpu-2:8000: something else")],
            [*[each.effect for each in per_target(5, 9)], "gpu-2:8000: something else"],
            id="so does another effect",
        ),
        pytest.param(
            [finding("series", "info", n, f"{n} series") for n in (1, 2, 3)],
            ["1 series", "2 series", "3 series"],
            id="without a target nothing is shared",
        ),
    ],
)
def test_a_finding_shared_by_targets_is_reported_once(findings, effects):
    assert [each.effect for each in quality.shared_once(findings, TARGETS)] == effects


def test_interruptions_name_the_silent_target(restarts):
    shown = quality.interruption_table(restarts)
    assert cells(shown, "what happened") == [
        "not scraped",
        "scraped 38 times, no answer; the server restarted",
    ]


def test_scrapes_are_counted_against_an_even_grid(restarts):
    shown = quality.scrape_table(restarts).frame.row(0, named=True)
    assert shown["expected"] == shown["answered"] + shown["failed"] + shown["missed"]


def test_most_that_may_be_missing_is_a_share_of_the_counted(restarts):
    shown = quality.loss_table(restarts).frame
    assert (shown["missing_high"] / shown["counted"]).to_list() == pytest.approx(
        shown["missing_ratio"].to_list()
    )


def test_traffic_is_counted(swept):
    found, shown = swept.answer, latency.traffic_table(swept).frame
    assert shown["total"].to_list() == [
        found.requests.finished,
        found.tokens.prompt,
        found.tokens.generation,
    ]
    assert shown["per_second"][2] == pytest.approx(found.throughput.output_tokens_per_second, 0.01)


def test_latency_has_nine_quantiles_within_their_bounds(swept):
    shown = latency.latency_table(swept).frame.drop_nulls()
    assert shown.height == 9
    assert shown.filter(
        (shown["estimate_seconds"] < shown["low_seconds"])
        | (shown["estimate_seconds"] > shown["high_seconds"])
    ).is_empty()


def test_phases_share_all_of_the_time(swept):
    assert sum(latency.latency_breakdown(swept).frame["share_ratio"]) == pytest.approx(1)


def test_regimes_share_all_of_the_time_of_an_engine():
    rows = (stretch(0, 10, "idle", "a"), stretch(10, 15, "kv-bound", "b"))
    rows += (stretch(15, 16, "idle", "c"), stretch(16, 30, "kv-bound", "d"))
    made = analysis(answer=answer(saturation__regimes=rows))
    assert saturation.regime_table(made).texts == [
        ["r0/0", "KV-cache-bound", "1,140\xa0s", "63\xa0%", "d"],
        ["r0/0", "idle", "660\xa0s", "37\xa0%", "a"],
    ]


def test_lighter_half_is_beside_all_loads(swept):
    shown = saturation.extrapolation_table(swept)
    assert cells(shown, "from") == ["the lighter half", "all loads"]
    assert shown.frame["capacity"][1] == swept.answer.saturation.capacity.mid


def test_bill_adds_up(two_replicas):
    shown = cost.bill_table(Analysis.of(two_replicas, assumptions=PRICED)).frame
    parts = shown.filter(shown["group"] != "total")
    whole = shown.row(-1, named=True)
    assert parts["allocation_usd"].sum() == pytest.approx(whole["allocation_usd"])
    assert parts["idle_usd"].sum() == pytest.approx(whole["idle_usd"])


@pytest.mark.parametrize(
    ("by", "price", "note"),
    [
        pytest.param("engine", 0.5, "Total: idle cost $", id="intervals of the whole"),
        pytest.param(
            "engine",
            None,
            "Bill, idle cost, per 1,000 requests, per million output tokens: not known: "
            "no price given",
            id="a reason once",
        ),
        pytest.param(
            "finished_reason",
            0.5,
            "Idle cost, utilization, per million output tokens: not known: "
            "vllm:generation_tokens_total is counted without the label finished_reason",
            id="a label that tokens do not have",
        ),
    ],
)
def test_bill_notes_give_what_cells_cannot(two_replicas, by, price, note):
    assumed = Assumptions(pricing(price))
    assert note in cost.bill_table(Analysis.of(two_replicas, assumptions=assumed), by).caption


def test_other_prices_are_in_order_and_hold_the_own(a100):
    shown = cost.other_prices(a100).frame
    own = shown.filter(shown["price"].str.contains("(used here)", literal=True))
    assert shown["usd_per_gpu_hour"].is_sorted()
    assert own["usd_per_request"].to_list() == [a100.answer.cost.usd_per_request.mid]


def test_break_even_is_where_both_cost_the_same(swept):
    shown = cost.break_even_table(swept, **API).frame
    api, own = shown["value"][:2]
    at = dict(zip(shown["figure"], shown["value"], strict=True))
    ratio = at["requests per day, in this window"] / at["requests per day at break-even"]
    assert api / own == pytest.approx(ratio)


def test_a_claim_is_checked_figure_by_figure(a100):
    shown = claims.claim_table(a100, CLAIM)
    assert dict(zip(cells(shown, "figure"), cells(shown, "agree"), strict=True)) == {
        "hours": "yes",
        "successful requests": "yes",
        "requests per hour": "yes",
        "cost per request": "no",
    }


def test_a_claim_at_another_price_is_reported(a100):
    tier = find_price(A100).tier
    assert f"is not the price of RunPod {tier}" in repr(claims.implied_price(a100, CLAIM))


def test_claim_costs_in_proportion_to_the_price(a100):
    other = "A100-80GB-any CoreWeave classic GPU-only 2024-02-07"
    shown = claims.claim_at_prices(a100, CLAIM, [A100, other]).frame
    each = shown["usd_per_request"] / shown["usd_per_gpu_hour"]
    assert each[0] == pytest.approx(each[1])


def test_claim_is_judged_at_a_row_only(swept):
    with pytest.raises(InputError, match="name one by price"):
        claims.claim_verdict(swept, CLAIM, other_price=A100)


def test_verdict_on_a_claim_says_that_it_is_simulated(a100):
    assert repr(claims.claim_verdict(a100, CLAIM, other_price=A100)).startswith(
        "In this simulation, 5,138 requests cost"
    )


def test_sizing_is_that_of_the_plan(planned):
    shown = plans.sizing_table(planned).frame
    assert shown["value"].to_list() == [
        planned.demand_requests_per_second.mid,
        planned.demand_output_tokens_per_second.mid,
        planned.capacity_output_tokens_per_second.mid,
        planned.replicas.mid,
        planned.gpus.mid,
        planned.usd_per_month.mid,
    ]


def test_dollars_without_a_price_are_at_that_of_the_same_gpu(sweep):
    request = PlanRequest(from_gpu="A100-80GB-PCIe", model="openai/gpt-oss-20b")
    found = plan(Analysis.of(sweep), request)
    here = found.options[[each.gpu.startswith("A100-80GB-PCIe") for each in found.options].index(1)]
    shown = plans.sizing_table(found).texts[-1]
    assert shown[0] == "cost per month, at a list price"
    assert here.usd_per_month.is_known


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        pytest.param(
            {"wait_seconds": None, "is_within_limit": False},
            "the queue would grow without limit",
            id="full",
        ),
        pytest.param(
            {"wait_seconds": 7.0, "is_within_limit": False},
            "with a p95 wait of 7.00 s, above the limit of 1.00 s",
            id="too slow",
        ),
        pytest.param(
            {"replicas_needed": None}, "no number of replicas meets that limit", id="never enough"
        ),
    ],
)
def test_queue_that_does_not_hold_says_so(planned, changes, says):
    check = replace(planned.queue_check, **changes)
    shown = repr(plans.queue_check(replace(planned, queue_check=check)))
    assert says in shown.replace("\xa0", " ")


def test_plan_of_several_models_has_a_queue_and_a_replay_of_each(planned):
    (part,) = planned.by_model.values()
    silent = replace(part, queue_check=None, replicas=Estimate.unknown("nothing was seen"))
    mixed = replace(planned, by_model={"m": part, "n": silent})
    said = repr(plans.queue_check(mixed)).replace("\xa0", " ")
    assert "For m: " in said
    assert "replicas are planned, spares included" in said
    assert "without spares would be" in said
    assert "For n: it is not known how many replicas are needed, because nothing was seen" in said
    assert "No queue check" in said


def test_what_replicas_carry_leaves_out_spares_and_headroom(swept):
    policy = Policy(spare_replicas=2, headroom_ratio=0.3)
    shown = plans.runway_table(plan(swept, PlanRequest(policy=policy)), growth_ratio_per_month=0.1)
    assert "without the 2 spares and with 30\xa0% of each other replica kept free" in shown.caption


def test_compared_gpus_are_in_order_and_others_are_grouped_by_reason(planned):
    compared = plans.gpu_table(planned.options).frame
    rejected = plans.rejected_table(planned.options).frame
    names = [name for row in rejected["gpus"] for name in row.split(", ")]
    assert compared["tokens_per_usd"].is_sorted(descending=True)
    assert rejected["reason"].is_unique().all()
    assert len(names) + compared.height == len(planned.options)


def test_savings_of_days_are_priced(days):
    shown = plans.savings_table(days, Policy())
    assert [text == "not known" for text in cells(shown, "value")] == [False, False, True]
    assert "one replica cannot be consolidated" in cells(shown, "basis")[2]


def test_minutes_say_why_no_saving_is_known(swept):
    shown = plans.savings_table(swept, Policy())
    assert shown.empty.startswith("Savings are not known: 0 days with at least 12 observed hours")


def test_day_ahead_has_its_hours_and_its_method(days):
    shown = plans.forecast_table(plan(days))
    assert len(shown.rows) == 24
    assert "Coverage expected from the back-test" in shown.caption


@pytest.fixture(scope="module")
def offered():
    return gpu_options(
        model="openai/gpt-oss-20b",
        gpu="A100-80GB-SXM",
        output_tokens_per_second=5180.0,
        input_tokens=215.0,
        output_tokens=194.0,
        measured_by="published",
        requests_per_second=40.0,
    )


@pytest.mark.parametrize(
    ("replicas", "start"),
    [
        pytest.param(
            Estimate.exact(4, "sized"),
            "For this window's load (own, 3.20 requests/s), 4 replicas are needed",
            id="a capacity",
        ),
        pytest.param(
            Estimate.unknown("too light"),
            "For this window's load (own, 3.20 requests/s), it is not known how many replicas are "
            "needed: too light. For Other-8B at 40.0 requests/s, from the rate measured elsewhere",
            id="none",
        ),
    ],
)
def test_verdict_of_a_plan_names_the_model_and_the_load_of_each_half(
    planned, offered, replicas, start
):
    rate = Estimate.exact(3.2, "seen")
    found = replace(planned, model="own", replicas=replicas, demand_requests_per_second=rate)
    shown = plans.plan_verdict(found, offered, model="Other-8B", requests_per_second=40.0)
    assert repr(shown).startswith(start)
    assert "gives the most tokens per dollar, with " in repr(shown)


def test_a_sentence_escapes_names_from_telemetry():
    shown = text("a model <script>alert(1)</script> ran.")._repr_mimebundle_()
    assert "<p>A model &lt;script&gt;alert(1)&lt;/script&gt; ran.</p>" in shown["text/html"]


def test_two_prices_in_a_sentence_are_not_taken_for_a_formula():
    assert 'class="mathjax_ignore' in text("from $1 to $2.")._repr_mimebundle_()["text/html"]
