"""The terminal's face on real windows and on answers made up: what it says, and that it fits."""

from datetime import UTC, datetime

import pytest
from answer_by_hand import ANSWER, answer, estimate, unknown
from rich.cells import cell_len
from vllm_capacity.answers import answer as answer_of
from vllm_capacity.answers import cost_by

from vllm_capacity.bills import Terms
from vllm_capacity.facts.prices import given_price
from vllm_capacity.plan import Ask, plan
from vllm_capacity.render.prose import verdict as words
from vllm_capacity.render.terminal import cost_text, figures_text
from vllm_capacity.render.terminal_plan import plan_text
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

PRICED = Terms(usd_per_gpu_hour=given_price(0.5), ttft_slo_seconds=2.0)
NAMES = ("vllm-sweep", "vllm-restart", "vllm-two-replicas", "a100-gpt-oss-20b")
ASK = Ask(
    from_gpu="A100-80GB-PCIe",
    model="openai/gpt-oss-20b",
    to_gpus=("RTX-4090-PCIe", "H100-80GB-SXM", "T4-PCIe"),
)
HOURS = [
    {"ts": f"2026-11-24T{hour:02}:00:00Z", "low": 10.0, "mid": 20.0 + hour, "high": 60.0}
    for hour in range(24)
]
PART = TimeRange(datetime(2026, 11, 24, tzinfo=UTC), datetime(2026, 11, 25, tzinfo=UTC))
BILL = (
    "allocation_usd",
    "idle_usd",
    "utilisation",
    "usd_per_request",
    "usd_per_million_output_tokens",
)
MISSING = {name: unknown("no price given") for name in ("allocation_usd", "usd_per_request")}
OPTION = (
    "slo_output_tokens_per_second",
    "usd_per_gpu_hour",
    "tokens_per_usd",
    "replicas",
    "usd_per_month",
)
PLAN = {
    "window": ANSWER["window"],
    "policy": {"spare_replicas": 1},
    "demand_requests_per_second": estimate(3.2, 3.0, 3.4),
    "demand_output_tokens_per_second": estimate(356.0, 334.0, 378.0),
    "capacity_output_tokens_per_second": estimate(269.0, 265.0, 293.0),
    "replicas": estimate(3.0),
    "gpus": estimate(3.0),
    "usd_per_month": estimate(1095.75),
    "queue_check": {
        "utilisation_ratio": 0.66,
        "wait_seconds": 0.0,
        "is_within_limit": True,
        "replicas_needed": 2,
        "assumes": "Poisson arrivals",
        "wait_limit_seconds": 1.0,
    },
    "sensitivity": {"now": estimate(3.0), "demand doubles": estimate(5.0, 4.0, 5.0)},
    "model": "m",
    "options": [],
    "options_reason": "pass --gpu",
    "forecast": {"forecast": HOURS, "method": "a blend", "coverage_measured": 0.9, "reason": ""},
}


@pytest.fixture(scope="module")
def shown(examples):
    """What the terminal shows of each example window: figures, plan and bill."""
    made = {}
    for name in NAMES:
        window = open_window(examples / name)
        said = {"window_name": name, "is_simulated": window.is_simulated}
        made[name] = {
            "figures": figures_text(answer_of(window, terms=PRICED), **said),
            "plan": plan_text(plan(window, ASK, terms=PRICED), here=ASK.from_gpu, **said),
            "cost": cost_text(
                cost_by(window, by="engine", terms=PRICED), part=window.extent, **said
            ),
        }
    return made


def flat(text):
    """The text as one line: wrapping is not what is asked."""
    return " ".join(text.split())


@pytest.mark.parametrize("face", ["figures", "plan", "cost"])
@pytest.mark.parametrize("name", NAMES)
def test_no_line_is_wider_than_eighty_columns(shown, name, face):
    lines = shown[name][face].split("\n")
    assert max(cell_len(line) for line in lines) <= 80
    assert not any(line.endswith(" ") for line in lines)


@pytest.mark.parametrize("face", ["figures", "plan", "cost"])
@pytest.mark.parametrize("name", NAMES)
def test_only_a_simulated_window_says_that_it_is(shown, name, face):
    assert (words.SIMULATED in flat(shown[name][face])) == (name == "a100-gpt-oss-20b")


@pytest.mark.parametrize("face", ["figures", "plan", "cost"])
def test_nothing_but_text_where_colour_is_not_asked_for(shown, face):
    assert all("\x1b" not in shown[name][face] for name in NAMES)


def test_colour_is_there_where_it_is_asked_for():
    assert "\x1b[1m" in figures_text(ANSWER, window_name="w", is_colourful=True)


def test_sentences_are_those_of_the_page():
    text = flat(figures_text(ANSWER, window_name="w"))
    assert all(flat(sentence) in text for sentence in words.verdict(ANSWER))


def test_answer_comes_in_the_order_of_the_page():
    text = figures_text(ANSWER, window_name="my-window", price_note="$1.64 (RunPod)")
    signs = ["my-window", "24 Nov 2026", "$1.64 (RunPod)", "1,000 requests cost"]
    signs += ["Cost of a request", "First tokens in time", "Can I trust this?", "jitter"]
    places = [text.index(sign) for sign in signs]
    assert places == sorted(places)


@pytest.mark.parametrize(
    "label",
    [
        "Cost of a request",
        "Cost of output",
        "Output for a dollar",
        "Used of its capacity",
        "Room before it is full",
        "First tokens in time",
    ],
)
def test_every_tile_is_there(label):
    assert label in figures_text(ANSWER, window_name="w")


def test_unknown_figure_has_its_reason_in_its_place():
    told = answer(slo__ttft_attainment=unknown("no target given"))
    row = figures_text(told, window_name="w").split("First tokens in time", 1)[1].split("\n")[0]
    assert " ".join(row.split()) == "not known no target given"


def test_reason_that_several_figures_share_is_told_once():
    whole = unknown("too few loads were seen")
    told = {**PLAN, "replicas": whole, "gpus": whole, "usd_per_month": whole}
    assert plan_text(told).count("too few loads were seen") == 1


@pytest.mark.parametrize(
    ("severity", "shape"),
    [
        pytest.param("error", "■", id="an error as poor"),
        pytest.param("warning", "▲", id="a warning as usable"),
        pytest.param("info", "●", id="a note as good"),
    ],
)
def test_finding_has_the_shape_of_its_severity(severity, shape):
    found = {"check": "gap", "severity": severity, "count": 2, "effect": "140 s without a scrape"}
    text = figures_text(answer(quality=[{**found, "when": None, "moves": {}}]), window_name="w")
    assert f"\n{shape} gap (2): 140 s without a scrape\n" in text


def test_name_cannot_move_the_cursor():
    text = figures_text(ANSWER, window_name="evil\x1b[2J\r\u202ename [bold]x[/bold]")
    assert text.startswith("evil [2J name [bold]x[/bold]\n")


def test_name_of_three_hundred_letters_is_wrapped():
    text = figures_text(ANSWER, window_name="w" * 300)
    assert max(len(line) for line in text.split("\n")) <= 80


def test_width_is_the_readers():
    lines = figures_text(ANSWER, window_name="w", width=50).split("\n")
    assert max(cell_len(line) for line in lines) <= 50


def test_no_blank_line_ends_the_text(shown):
    texts = [text for faces in shown.values() for text in faces.values()]
    assert [text[-40:] for text in texts if text.endswith("\n\n") or text[-1] != "\n"] == []


def test_environment_changes_nothing(monkeypatch):
    plain = figures_text(ANSWER, window_name="w")
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    assert figures_text(ANSWER, window_name="w") == plain


def test_plan_says_what_is_needed():
    text = flat(plan_text(PLAN, window_name="w"))
    for said in (
        "Replicas 3 (1 of them spare)",
        "Dollars $1,100 a month",
        "demand doubles 5 between 4 and 5",
        "None compared: pass --gpu",
        "without spares, 2 replicas would be 66 % busy, and 95 % of requests would wait under "
        "1.00 s; 2 would be the fewest for that, spares not counted. Assumed: Poisson arrivals",
        "24 Nov 2026 23:00 10 43 60",
        "Coverage expected from the back-test: 90 % of hours inside",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("check", "says"),
    [
        pytest.param(
            {"wait_seconds": None, "is_within_limit": False}, "would never settle", id="full"
        ),
        pytest.param(
            {"wait_seconds": 7.0, "is_within_limit": False}, "wait 7.00 s or more", id="too slow"
        ),
        pytest.param({"replicas_needed": None}, "is past counting", id="never enough"),
    ],
)
def test_queue_that_does_not_hold_says_so(check, says):
    told = {**PLAN, "queue_check": {**PLAN["queue_check"], **check}}
    assert says in flat(plan_text(told))


def test_plan_without_a_queue_check_says_nothing_of_one():
    assert "Assumed" not in plan_text({**PLAN, "queue_check": None})


def test_plan_says_what_its_demand_rests_on(shown):
    text = " ".join(shown["vllm-sweep"]["plan"].split())
    assert "The demand rests on: finished requests/s" in text
    assert "more may have been asked for" in text


def test_long_forecast_is_cut_and_says_so():
    forecast = {**PLAN["forecast"], "forecast": HOURS * 2}
    text = plan_text({**PLAN, "forecast": forecast})
    assert "and 24 more" in text


def test_refused_forecast_has_its_reason(shown):
    assert "No forecast: too short to forecast" in shown["vllm-sweep"]["plan"]


def option(gpu, *, reason="", **figures):
    known = {name: estimate(2e6 if name == "tokens_per_usd" else 3.0) for name in OPTION}
    return {"gpu": gpu, "dtype": "bf16", "price_row": "a row", "reason": reason, **known, **figures}


def compared(*options):
    return {**PLAN, "options": list(options), "usd_per_month": unknown("no price given")}


def refused(gpu, reason):
    return option(gpu, reason=reason, tokens_per_usd=unknown(reason))


def test_rejected_gpu_is_a_line_with_its_reason(shown):
    said = flat(shown["vllm-sweep"]["plan"])
    assert "✗ T4-PCIe: cannot run mxfp4 weights" in said


@pytest.mark.parametrize(
    ("reasons", "line"),
    [
        pytest.param(
            {"A": "no price of A in the table", "B": "no price of B in the table"},
            "✗ A, B: no price in the table\n",
            id="the name inside",
        ),
        pytest.param(
            {"A": "A cannot run it: too old", "B": "B cannot run it: too old"},
            "✗ A, B: cannot run it: too old\n",
            id="the name at the beginning",
        ),
        pytest.param(
            {"A": "needs 40 GiB", "B": "needs 41 GiB"},
            "✗ A: needs 40 GiB\n✗ B: needs 41 GiB\n",
            id="two reasons are two lines",
        ),
    ],
)
def test_gpus_rejected_for_one_reason_share_a_line(reasons, line):
    told = compared(*(refused(gpu, why) for gpu, why in reasons.items()))
    assert line in plan_text(told)


def test_option_tells_its_output_its_price_and_what_a_dollar_brings():
    figures = {
        "slo_output_tokens_per_second": estimate(298.0),
        "usd_per_gpu_hour": estimate(2.5),
        "tokens_per_usd": estimate(430_000.0, 224_000.0, 1_079_000.0),
        "usd_per_month": estimate(5480.0),
    }
    text = flat(plan_text(compared(option("A100-80GB-SXM", **figures))))
    assert "A100-80GB-SXM 298 $2.50 0.430 0.224 and 1.079 3 $5,480" in text


@pytest.mark.parametrize(
    ("here", "says"),
    [
        pytest.param("A", "Dollars $5,480 a month at the price of A below", id="its GPU is below"),
        pytest.param("B", "Dollars not known no price given", id="its GPU is not below"),
        pytest.param("", "Dollars not known no price given", id="its GPU is not known"),
    ],
)
def test_dollars_without_a_price_are_those_of_the_table_below(here, says):
    told = compared(option("A", usd_per_month=estimate(5480.0)))
    assert says in flat(plan_text(told, here=here))


def test_assumed_form_factor_is_a_note_below_the_table():
    text = plan_text(compared(option("A100-80GB-any (form factor assumed: PCIe/SXM)")))
    assert "A100-80GB-any: form factor assumed: PCIe/SXM\n" in text


def test_own_and_best_other_gpu_have_the_provenance_of_their_price(shown):
    said = flat(shown["vllm-sweep"]["plan"])
    assert "Price of RTX-4090-PCIe: median of" in said
    assert "Price of A100-80GB-PCIe: " in said
    assert "Price of H100-80GB-SXM: " not in said


def test_bill_has_a_row_a_part_and_the_whole(shown):
    rows = [row.split() for row in shown["vllm-two-replicas"]["cost"].split("\n")]
    named = {row[0]: row[1] for row in rows if len(row) > 1}
    assert [named[name] for name in ("r0/0", "r1/0", "whole")] == ["$0.0444", "$0.0444", "$0.0889"]


def billed(*, by="model", **figures):
    whole = {name: estimate(1.0) for name in BILL} | figures
    return {"by": by, "whole": whole, "parts": {"m": whole}}


def test_bill_says_when_it_was_and_what_was_paid(shown):
    said = flat(shown["vllm-two-replicas"]["cost"])
    assert "24 Nov 2026 05:58:46 to 06:04:06 UTC (5.33 min)" in said
    assert "$0.5/GPU-hour (given)" in said
    assert "dollars per 1,000 requests" in flat(cost_text(billed(**MISSING), part=PART))


def test_bill_without_a_price_says_why_once():
    said = flat(cost_text(billed(**MISSING), part=PART))
    assert "bill, dollars per 1,000 requests: not known: no price given" in said
    assert said.count("no price given") == 2  # the line of the price, and the reason


def test_counter_without_the_label_is_not_said_to_be_missing():
    lacking = unknown("no generation-token counter")
    told = billed(by="finished_reason", utilisation=lacking, idle_usd=lacking)
    said = flat(cost_text(told, part=PART, unlabelled=["vllm:generation_tokens_total"]))
    assert "no generation-token counter" not in said
    assert (
        "of it idle, used: not known: vllm:generation_tokens_total is counted without the label "
        "finished_reason" in said
    )
