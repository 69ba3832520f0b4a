"""What a terminal shows: a snapshot per verb, and that it fits and cannot be hijacked."""

import csv
import json
import shutil
from datetime import timedelta

import pytest
from answer_by_hand import START, answer
from click.testing import CliRunner
from rich.cells import cell_len
from snapshot import assert_same

from vllm_capacity.alerts import RULES, alerts
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, Slo, pricing
from vllm_capacity.cli import cli
from vllm_capacity.figures.latency import Quantile
from vllm_capacity.plan import PlanRequest, plan
from vllm_capacity.render.prose.verdict import SIMULATED
from vllm_capacity.render.terminal import alerts_text, cost_text, figures_text, plan_text
from vllm_capacity.telemetry.window import open_window

PRICED = ("--usd-per-hour", "0.5", "--slo-ttft", "2", "--slo-itl", "0.1")
NAMES = ("vllm-sweep", "vllm-restart", "vllm-two-replicas", "a100-gpt-oss-20b")
ON_A100 = ("--gpu", "A100-80GB-PCIe", "--model", "openai/gpt-oss-20b")
ROW = "A100-80GB-PCIe RunPod secure 2026-11-09"
COMPARED = ("--gpus", "RTX-4090-PCIe,H100-80GB-SXM,T4-PCIe")
MEASURED = (
    *("--model", "openai/gpt-oss-20b", "--from-gpu", "A100-80GB-SXM"),
    *("--output-tokens-per-second", "5180", "--input-tokens", "215", "--output-tokens", "194"),
)
VERBS = {
    "figures": ("figures", "vllm-sweep", *PRICED),
    "figures-without-price": ("figures", "vllm-two-replicas"),
    "figures-simulated": ("figures", "a100-gpt-oss-20b", "--price", ROW),
    "figures-damaged": ("figures", "vllm-restart", *PRICED),
    "cost": ("cost", "vllm-two-replicas", "--usd-per-hour", "0.5"),
    "cost-without-price": ("cost", "vllm-two-replicas"),
    "cost-by-label": ("cost", "vllm-sweep", "--by", "finished_reason", "--usd-per-hour", "1"),
    "plan": ("plan", "vllm-sweep", *PRICED, *ON_A100, *COMPARED),
    "plan-unknown": ("plan", "a100-gpt-oss-20b"),
    "alerts": ("alerts", "vllm-restart"),
    "model": ("model", "openai/gpt-oss-20b", "--gpu", "H100-80GB-SXM", "--tokens", "8000"),
    "model-alone": ("model", "Qwen3-8B", "--dtype", "fp8", "--kv-dtype", "fp8"),
    "whatif": ("whatif", *MEASURED, "--to-gpu", "H100-80GB-SXM"),
    "whatif-refused": ("whatif", *MEASURED, "--to-gpu", "T4-PCIe"),
}


def run(*words):
    return CliRunner().invoke(cli, words, catch_exceptions=False, env={"COLUMNS": "80"}).stdout


@pytest.mark.parametrize("name", VERBS)
def test_verb_shows(name):
    text = run(*VERBS[name])
    assert max(cell_len(line) for line in text.split("\n")) <= 80
    assert not any(line.endswith(" ") for line in text.split("\n"))
    assert_same(f"terminal/{name}", text)


def test_fit_shows(tmp_path):
    loads = [(1, 60), (2, 110), (4, 180), (8, 250), (16, 290), (27, 297), (35, 298), (40, 296)]
    path = tmp_path / "loads.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["running_requests", "output_tokens_per_second"])
        writer.writerows(loads)
    assert_same("terminal/fit", run("fit", str(path)))


def test_forecast_shows(tmp_path):
    path = tmp_path / "demand.csv"
    hours = [f"{START + timedelta(hours=i):%Y-%m-%dT%H:%M:%SZ},{40 + i % 24}" for i in range(96)]
    path.write_text("\n".join(["ts,requests", *hours, ""]))
    shown = run("forecast", str(path), "--column", "requests", "--horizon", "3h")
    assert_same("terminal/forecast", shown)


@pytest.fixture(scope="module")
def hostile(examples, tmp_path_factory):
    """A window whose name holds an escape, a turn of direction, and markup of rich."""
    path = tmp_path_factory.mktemp("w") / f"evil\x1b[2J\u202e[bold]x {'w' * 150}"
    shutil.copytree(examples / "vllm-two-replicas", path)
    return Analysis.of(open_window(path))


@pytest.mark.parametrize(
    "shown",
    [
        pytest.param(figures_text, id="figures"),
        pytest.param(cost_text, id="cost"),
        pytest.param(lambda found, **kw: plan_text(found, plan(found), **kw), id="plan"),
    ],
)
@pytest.mark.parametrize("width", [60, 80, 100])
def test_name_neither_moves_the_cursor_nor_widens_a_line(hostile, shown, width):
    text = shown(hostile, width=width)
    assert text.startswith("evil [2J [bold]x w")
    assert max(cell_len(line) for line in text.split("\n")) <= width


@pytest.mark.parametrize("name", NAMES)
def test_only_a_simulated_window_says_that_it_is(examples, name):
    found = Analysis.of(open_window(examples / name))
    texts = (figures_text(found), cost_text(found), plan_text(found, plan(found)))
    is_said = {SIMULATED in " ".join(text.split()) for text in texts}
    assert is_said == {name == "a100-gpt-oss-20b"}


def test_environment_variables_change_nothing(sweep, monkeypatch):
    found = Analysis.of(sweep, assumptions=Assumptions(pricing(0.5), Slo(2.0)))
    plain = figures_text(found)
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "200", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    assert figures_text(found) == plain


def test_dollars_without_a_price_name_the_price_used(sweep):
    found = Analysis.of(sweep)
    request = PlanRequest(from_gpu="A100-80GB-PCIe", model="openai/gpt-oss-20b")
    text = plan_text(found, plan(found, request))
    assert "cost per month, at a list price" in " ".join(text.split())


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        pytest.param({}, "quiet p95 TTFT 600 ms above 5 s", id="below its threshold"),
        pytest.param(
            {"latency__ttft_seconds__p95": Quantile(None, 60.0, None, None)},
            "FIRED p95 TTFT more than 60 s above 5 s",
            id="past the last bucket",
        ),
        pytest.param(
            {"latency__ttft_seconds__p95": Quantile()},
            "unknown p95 TTFT not known: nothing was observed above 5 s",
            id="nothing observed",
        ),
    ],
)
def test_alert_says_what_was_found(changes, row):
    found = alerts(answer(**changes), [rule for rule in RULES if rule.name == "ttft-p95"])
    assert row in " ".join(alerts_text(found).replace("\xa0", " ").split())


def test_json_is_json_and_no_table():
    assert json.loads(run("alerts", "vllm-restart", "--json"))
