"""Rules for Prometheus and a dashboard for Grafana, held to Prometheus' own checks."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.integration.real_prometheus import prometheus_binary
from vllm_capacity.alerts import RULES, with_thresholds
from vllm_capacity.assumptions import Slo
from vllm_capacity.render.exports.monitoring import dashboard_json, recorded, rules_yaml


def promtool(*words):
    found = shutil.which("promtool", path=str(Path(prometheus_binary()).parent))
    done = subprocess.run([found, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.yml"
    slo = Slo(ttft_p95_seconds=2.0)
    path.write_text(rules_yaml(with_thresholds({"cost": 3.0}), slo=slo, usd_per_gpu_hour=2.0))
    return path


def alerts_of(path):
    _, alerting = yaml.safe_load(path.read_text())["groups"]
    return {one["alert"]: one for one in alerting["rules"]}


def test_prometheus_takes_the_rules(rules):
    assert "SUCCESS" in promtool("check", "rules", rules)


def test_alerts_are_those_of_the_command_with_their_thresholds(rules):
    found = {one["labels"]["rule"]: one["expr"] for one in alerts_of(rules).values()}
    assert list(found) == [
        *("e2e-p99", "ttft-p95", "kv-cache", "waiting", "failures", "no-data", "cost"),
        "ttft-target",
    ]
    for rule in with_thresholds({"cost": 3.0}):
        if rule.name in found and rule.name != "no-data":
            assert found[rule.name].endswith(f"> {rule.above:g}")
    assert found["ttft-target"].endswith("ttft_seconds:p95 > 2")


def test_without_a_price_nothing_is_said_of_money():
    assert "usd" not in rules_yaml(RULES)
    assert "USD" not in dashboard_json()


RUNNING = 'vllm:num_requests_running{job="v",instance="a",model_name="m"}'
GENERATED = RUNNING.replace("num_requests_running", "generation_tokens_total")
WAITING = RUNNING.replace("running", "waiting")
BUCKET = 'vllm:time_to_first_token_seconds_bucket{job="v",instance="a",model_name="m",le="%s"}'


@pytest.mark.parametrize(
    ("series", "fires"),
    [
        pytest.param({RUNNING: "3x40", WAITING: "0x40"}, [], id="all is well"),
        pytest.param({RUNNING: "3x40", WAITING: "60x40"}, ["VllmWaiting"], id="a long queue"),
        pytest.param({RUNNING: "3x10 _x30"}, ["VllmNoData"], id="a target that went silent"),
        pytest.param(
            {RUNNING: "3x40", BUCKET % "10.0": "0x40", BUCKET % "+Inf": "0+60x40"},
            ["VllmTtftP95", "VllmTtftTarget"],
            id="first tokens that take longer than any bucket",
        ),
    ],
)
def test_rules_fire_in_a_prometheus(tmp_path, rules, series, fires):
    asked = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "30m"}
    found = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in fires]
    check(tmp_path, rules, series, {**asked, "exp_samples": found})


def test_a_target_that_stays_silent_goes_on_firing(tmp_path, rules):
    asked = {"expr": 'count by (alertname) (ALERTS{alertstate="firing"})', "eval_time": "10h"}
    found = [{"labels": '{alertname="VllmNoData"}', "value": 1}]
    check(tmp_path, rules, {RUNNING: "3x10 _x600"}, {**asked, "exp_samples": found})


def check(folder, rules, series, expected):
    """Have Prometheus evaluate the rules on series of a value a minute."""
    given = [{"series": name, "values": values} for name, values in series.items()]
    case = {"interval": "1m", "input_series": given, "promql_expr_test": [expected]}
    body = {"rule_files": [str(rules)], "evaluation_interval": "1m", "tests": [case]}
    path = folder / "test.yml"
    path.write_text(yaml.safe_dump(body))
    promtool("test", "rules", path)


@pytest.mark.parametrize(
    ("minutes", "tokens"),
    [
        pytest.param("1x120", "0+600x120", id="there all the time"),
        pytest.param("_x30 1x90", "_x30 0+600x90", id="there for half an hour of the last one"),
    ],
)
def test_a_token_costs_the_minutes_in_which_the_engine_was_there(tmp_path, rules, minutes, tokens):
    series = {RUNNING: minutes, GENERATED: tokens}  # ten tokens per second
    expected = 2 / 3600 / 10 * 1e6
    cost = "instance_model:vllm_usd_per_million_output_tokens"
    asked = {"expr": f"abs({cost} / {expected} - 1) < bool 0.05", "eval_time": "60m"}
    labels = '{job="v",instance="a",model_name="m"}'
    check(tmp_path, rules, series, {**asked, "exp_samples": [{"labels": labels, "value": 1}]})


def test_the_dashboard_has_a_panel_for_each_question():
    board = json.loads(dashboard_json(2.0))
    titles = [panel["title"] for panel in board["panels"]]
    assert len(titles) == len(set(titles)) == 10
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert all(any(each.expression in one for one in asked) for each in recorded(2.0) if each.panel)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(places) == len(titles), "no panel lies on another"
