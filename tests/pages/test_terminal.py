"""The terminal's face on real windows and on answers made up: what it says, and that it fits."""

import pytest
from answer_by_hand import ANSWER, answer, estimate, unknown
from rich.cells import cell_len

from vllm_capacity.answers import answer as answer_of
from vllm_capacity.answers import cost_by
from vllm_capacity.bills import Terms
from vllm_capacity.facts.prices import given_price
from vllm_capacity.pages import words
from vllm_capacity.pages.terminal import cost_text, figures_text, plan_text
from vllm_capacity.planning import Ask, plan
from vllm_capacity.telemetry.window import open_window

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
PLAN = {
    "window": ANSWER["window"],
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
            "plan": plan_text(plan(window, ASK, terms=PRICED), **said),
            "cost": cost_text(cost_by(window, by="engine", terms=PRICED), **said),
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


def test_environment_changes_nothing(monkeypatch):
    plain = figures_text(ANSWER, window_name="w")
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    assert figures_text(ANSWER, window_name="w") == plain


def test_plan_says_what_is_needed():
    text = flat(plan_text(PLAN, window_name="w"))
    for said in (
        "Replicas 3 with spares",
        "Dollars $1,100 a month",
        "demand doubles 5 between 4 and 5",
        "None compared: pass --gpu",
        "2 would do. Assumed: Poisson arrivals",
        "2026-11-24T23:00:00Z 10 43 60",
        "90 % lay inside such intervals",
    ):
        assert said in text


@pytest.mark.parametrize(
    ("check", "says"),
    [
        pytest.param({"wait_seconds": None, "is_within_limit": False}, "never settles", id="full"),
        pytest.param(
            {"wait_seconds": 7.0, "is_within_limit": False}, "wait 7.00 s or more", id="too slow"
        ),
        pytest.param({"replicas_needed": None}, "no number of them does", id="never enough"),
    ],
)
def test_queue_that_does_not_hold_says_so(check, says):
    told = {**PLAN, "queue_check": {**PLAN["queue_check"], **check}}
    assert says in flat(plan_text(told))


def test_plan_without_a_queue_check_says_nothing_of_one():
    assert "Assumed" not in plan_text({**PLAN, "queue_check": None})


def test_long_forecast_is_cut_and_says_so():
    forecast = {**PLAN["forecast"], "forecast": HOURS * 2}
    text = plan_text({**PLAN, "forecast": forecast})
    assert "and 24 more" in text


def test_refused_forecast_has_its_reason(shown):
    assert "No forecast: too short to forecast" in shown["vllm-sweep"]["plan"]


def test_rejected_gpu_is_a_line_with_its_reason(shown):
    said = flat(shown["vllm-sweep"]["plan"])
    assert "✗ T4-PCIe: T4-PCIe cannot run mxfp4 weights" in said


def test_best_gpu_has_the_provenance_of_its_price(shown):
    said = flat(shown["vllm-sweep"]["plan"])
    assert "Price of RTX-4090-PCIe: median of" in said


def test_bill_has_a_row_a_part_and_the_whole(shown):
    rows = shown["vllm-two-replicas"]["cost"].split("\n")[2:5]
    named = {row.split()[0]: row.split()[1] for row in rows}
    assert [named[name] for name in ("r0/0", "r1/0", "whole")] == ["$0.0444", "$0.0444", "$0.0889"]


def test_bill_without_a_price_says_why():
    figures = {name: unknown("no price given") for name in ("allocation_usd", "usd_per_request")}
    told = {"by": "model", "whole": figures, "parts": {"m": figures}}
    assert "bill: not known: no price given" in cost_text(told)
