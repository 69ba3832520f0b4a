"""The first screen of a fleet: the whole bill, then a row per engine."""

import re

import pytest
from answer_by_hand import answer, estimate

import vllm_capacity as vc
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, Slo, pricing
from vllm_capacity.estimate import Estimate
from vllm_capacity.render.sections import engine_table, header, model_table
from vllm_capacity.resources import shipped
from vllm_capacity.telemetry.window import open_window

MONEY = ["Bill", "Run rate", "Cost per request", "Cost per million output tokens", "Utilization"]
PER = ["Cost per request", "Cost per million output tokens", "Tokens per dollar"]
WITHIN = ["Headroom within the latency targets", "Headroom, ignoring latency targets"]
NO_TARGET = Estimate.unknown("no latency target was given")
REACHED = Estimate.at_least(300.0, *"abcdefgh", reason="the limit was not reached")


def of_a_fleet(**changes):
    return answer(window__engines=8, **changes)


@pytest.mark.parametrize(
    ("found", "labels"),
    [
        pytest.param(
            of_a_fleet(),
            [*MONEY, *WITHIN, "TTFT within target", "Tokens per dollar"],
            id="headroom within the targets comes first",
        ),
        pytest.param(
            of_a_fleet(
                slo__ttft_attainment=NO_TARGET,
                slo__itl_attainment=NO_TARGET,
                slo__throughput_output_tokens_per_second=NO_TARGET,
            ),
            [*MONEY, "Headroom"],
            id="without a target none is mentioned",
        ),
    ],
)
def test_first_screen_of_a_fleet_begins_with_the_whole_bill(found, labels):
    assert [tile.label for tile in header.tiles_of(found)] == labels


def test_bill_says_for_how_long_and_the_run_rate_for_a_month():
    bill, month, *_ = header.tiles_of(of_a_fleet())
    assert (bill.value, bill.unit) == ("$2.00", "for 25.0 min")
    assert (month.mid, month.unit) == (pytest.approx(2.0 * 730.5 / (25 / 60)), "per month")


def test_headroom_within_the_targets_is_what_their_throughput_leaves():
    tiles = {tile.figure: tile for tile in header.tiles_of(of_a_fleet())}
    assert tiles["slo_headroom_ratio"].mid == pytest.approx(1 - 200 / 220)


def test_a_reason_is_given_once():
    bound = estimate(0.5).divided_by(REACHED)
    found = of_a_fleet(
        cost__utilization=bound,
        saturation__headroom_ratio=bound,
        slo__ttft_attainment=Estimate.unknown("no first token"),
        cost__tokens_per_usd=Estimate.unknown("no first token"),
    )
    tiles = {tile.figure: tile for tile in header.tiles_of(found)}
    result = [tiles[name].basis for name in ("utilization", "headroom_ratio")]
    assert [text.endswith("no more is known, for the reason given above") for text in result] == [
        True,
        True,
    ]
    assert (tiles["ttft_attainment"].reason, tiles["tokens_per_usd"].reason) == (
        "no first token",
        "for the same reason as “TTFT within target”",
    )


def test_of_many_sources_the_first_are_shown():
    used = Estimate.exact(0.5, *(f"source {i}" for i in range(100)))
    tile = header.tiles_of(of_a_fleet(cost__utilization=used))[4]
    assert (tile.basis.count("source "), tile.basis.endswith("and 96 more sources")) == (4, True)


@pytest.mark.parametrize(
    ("found", "labels"),
    [
        pytest.param(
            answer(),
            [
                "Cost per request",
                "Cost per million output tokens",
                "Tokens per dollar",
                "Utilization",
                *WITHIN,
                "TTFT within target",
                "Bill",
                "Run rate",
            ],
            id="within the targets before ignoring them",
        ),
        pytest.param(
            answer(
                slo__ttft_attainment=NO_TARGET,
                slo__itl_attainment=NO_TARGET,
                slo__throughput_output_tokens_per_second=NO_TARGET,
            ),
            [
                "Cost per request",
                "Cost per million output tokens",
                "Tokens per dollar",
                "Utilization",
                "Headroom",
                "TTFT within target",
            ],
            id="without a target there is one headroom",
        ),
    ],
)
def test_first_screen_of_one_engine_begins_with_the_cost_of_a_request(found, labels):
    assert [tile.label for tile in header.tiles_of(found)] == labels


@pytest.fixture(scope="module")
def replicas():
    window = open_window(shipped("data/examples/vllm-two-replicas"))
    return Analysis.of(window, assumptions=Assumptions(pricing(2.0), Slo(2.0, 0.1)))


def test_row_of_each_engine_the_limited_one_first(replicas):
    found = engine_table(replicas)
    assert [column.title for column in found.shown] == [
        *("engine", "bill", "idle cost", "share of tokens", "utilization", "TTFT p95"),
        "what limits it",
    ]
    limits = [row[-1] for row in found.texts]
    assert (limits[0], len(found.rows)) == ("KV-cache-bound", 2)
    shares = [float(re.match(r"\d+", row[3])[0]) for row in found.texts]
    assert sum(shares) == pytest.approx(100, abs=1)


def test_bills_of_the_rows_add_up_to_the_whole(replicas):
    bills = engine_table(replicas).frame["allocation_usd"]
    assert bills.sum() == pytest.approx(replicas.cost.allocation_usd.mid)


def test_engines_without_a_price_have_no_dollars(replicas):
    free = Analysis.of(replicas.window)
    assert "bill" not in [column.title for column in engine_table(free).shown]


def test_one_engine_needs_no_table():
    assert engine_table(Analysis.of(open_window(shipped("data/examples/vllm-sweep")))) is None


def test_bills_are_compared_only_at_equal_rates_and_hours(replicas):
    line = header.title_line(replicas).content
    found = [tuple(each) for each in line["terms"]["bill"]]
    assert found == [(1.0, 2.0, 2.0, 2.0), (replicas.answer.window.hours,)]


def test_verdict_names_the_engines_whose_capacity_was_not_used(replicas):
    waste = [each for each in header.verdict_sentences(replicas) if "by engine" in each]
    assert len(waste) == 1
    assert re.fullmatch(
        r"Unused capacity by engine: r0 \$[\d.]+ of \$[\d.]+, r1 \$[\d.]+ of \$[\d.]+\.", waste[0]
    )


def test_engines_of_one_model_need_no_table_of_models(replicas):
    assert model_table(replicas) is None


def test_page_sorts_engines_by_their_values(replicas):
    found = engine_table(replicas)
    keys = [row[1] for row in found.content["keys"]]
    assert keys == [each.allocation_usd.mid for each in replicas.engine_rows]


@pytest.mark.parametrize("window", ["vllm-sweep", "fleet-two-models"])
def test_an_analysis_as_the_last_line_of_a_cell_is_its_first_screen(window):
    a = vc.open(window).analyze(price=1.64)
    shown = a._repr_mimebundle_()
    assert shown["text/plain"] == repr(a)
    assert shown["text/html"].count('class="tile"') == len(header.tiles_of(a.answer))
    for each in (window, "per GPU-hour", header.verdict_sentences(a)[0][:20]):
        assert each in shown["text/html"]
