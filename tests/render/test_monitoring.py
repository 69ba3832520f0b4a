"""Rules for Prometheus and a dashboard for Grafana, held to Prometheus' own checks."""

import json
import re
import shutil
import subprocess
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from tests.integration.real_prometheus import prometheus_binary
from vllm_capacity.alerts import RULES, with_thresholds
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Slo
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.render.exports.bucket_labels import at_or_above
from vllm_capacity.render.exports.monitoring import (
    ANY_MODEL,
    dashboard_json,
    recorded,
    rules_yaml,
)
from vllm_capacity.telemetry.window import open_window


def promtool(*words):
    found = shutil.which("promtool", path=str(Path(prometheus_binary()).parent))
    done = subprocess.run([found, *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def rules(tmp_path):
    path = tmp_path / "rules.yml"
    slo = Slo(ttft_p95_seconds=2.0)
    alerts = with_thresholds({"cost": 3.0, "idle-cost": 10.0}, below={"headroom": 0.2})
    capacity = {ANY_MODEL: Estimate.known(90, 100, 110)}
    path.write_text(rules_yaml(alerts, slo=slo, usd_per_gpu_hour=2.0, capacities=capacity))
    return path


def alerts_of(path):
    _, alerting = yaml.safe_load(path.read_text())["groups"]
    return {one["alert"]: one for one in alerting["rules"]}


def test_prometheus_takes_the_rules(rules):
    assert "SUCCESS" in promtool("check", "rules", rules)


def test_alerts_are_those_of_the_command_with_their_thresholds(rules):
    found = {one["labels"]["rule"]: one["expr"] for one in alerts_of(rules).values()}
    assert list(found) == [
        *("e2e-p99", "ttft-p95", "kv-cache", "waiting", "failures", "no-data"),
        *("ttft-burn-1h", "ttft-burn-6h", "cost", "cost-without-tokens", "idle-cost", "headroom"),
        "ttft-target",
    ]
    for rule in with_thresholds({"cost": 3.0, "idle-cost": 10.0}, below={"headroom": 0.2}):
        if rule.name in found and rule.name != "no-data":
            assert found[rule.name].endswith(f" {'<' if rule.is_below else '>'} {rule.threshold:g}")
    assert found["ttft-target"].endswith("ttft_seconds:p95 > 2")


def test_without_a_capacity_headroom_is_not_mentioned():
    text = rules_yaml(with_thresholds({"idle-cost": 20.0}, below={"headroom": 0.2}))
    assert "idle" not in text
    assert "headroom" not in text


def test_without_a_price_cost_is_not_mentioned():
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
            ["VllmTtftBurn1h", "VllmTtftBurn6h", "VllmTtftP95", "VllmTtftTarget"],
            id="first tokens that take longer than any bucket",
        ),
        pytest.param(
            {
                RUNNING: "3x40",
                BUCKET % "1.0": "0x40",
                BUCKET % "2.5": "0+20x40",
                BUCKET % "+Inf": "0+60x40",
            },
            ["VllmTtftBurn6h", "VllmTtftTarget"],
            id="two of three miss the target for sure, perhaps all",
        ),
        pytest.param(
            {
                RUNNING: "3x40",
                BUCKET % "1": "0x40",
                BUCKET % "2.5": "0+60x40",
                BUCKET % "+Inf": "0+60x40",
            },
            ["VllmTtftTarget"],
            id="perhaps all of them miss it: nothing burns for sure",
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
    expected = {**asked, "exp_samples": found}
    check(tmp_path, rules, {RUNNING: "3x10 _x600"}, expected, every="4m")


def check(folder, rules, series, expected, *, every="1m"):
    """Have Prometheus evaluate the rules on series with one value per minute.

    Rules that look back a day take it long. It evaluates groups in any order, so alerts find what
    the other group recorded only if `every` is shorter than the five minutes that it looks back.
    """
    given = [{"series": name, "values": values} for name, values in series.items()]
    case = {"interval": "1m", "input_series": given, "promql_expr_test": [expected]}
    body = {"rule_files": [str(rules)], "evaluation_interval": every, "tests": [case]}
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


@pytest.mark.parametrize(
    ("tokens", "fires"),
    [
        pytest.param("0+3600x750", ["VllmCost", "VllmIdleCost"], id="two of three stand idle"),
        pytest.param("0+4800x750", ["VllmCost"], id="80 per second: nearly full, or not"),
        pytest.param("0+10800x750", ["VllmCost", "VllmHeadroom"], id="full for sure"),
        pytest.param("5x750", ["VllmCostWithoutTokens", "VllmIdleCost"], id="no tokens at all"),
    ],
)
def test_cost_and_headroom_alerts_fire_only_if_certain(tmp_path, rules, tokens, fires):
    series = {RUNNING: "1x750", RUNNING.replace('"a"', '"b"'): "1x750", GENERATED: tokens}
    other = {GENERATED.replace('"a"', '"b"'): tokens}
    expr = 'count by (alertname) (ALERTS{alertstate="firing"}) > bool 0'
    found = [{"labels": f'{{alertname="{name}"}}', "value": 1} for name in fires]
    # Half a day of idle dollars, held to the threshold of half a day.
    asked = {"expr": expr, "eval_time": "12h", "exp_samples": found}
    check(tmp_path, rules, series | other, asked, every="4m")


def of_model(series, model):
    return series.replace('"m"', json.dumps(model))


TWO_MODELS = {
    "small": Estimate.known(900, 1000, 1100),
    'odd "one"|x': Estimate.known(90, 100, 110),
    ANY_MODEL: Estimate.known(9, 10, 11),
}


@pytest.mark.parametrize(
    ("per_second", "full", "idle"),
    [
        pytest.param({"small": 80, 'odd "one"|x': 20, "new": 2}, [], 1, id="all have room"),
        pytest.param({"small": 80, 'odd "one"|x': 105}, ['odd "one"|x'], 1, id="one is full"),
        pytest.param({"small": 1080}, ["small"], 0, id="the faster is full, alone"),
        pytest.param({"new": 10.8}, ["new"], 0, id="one without a capacity of its own"),
    ],
)
def test_each_model_is_held_to_its_own_capacity(tmp_path, per_second, full, idle):
    """A fleet of several models: headroom of each, and the idle dollars of all, added."""
    path = tmp_path / "rules.yml"
    alerts = with_thresholds({"idle-cost": 10.0}, below={"headroom": 0.2})
    path.write_text(rules_yaml(alerts, usd_per_gpu_hour=2.0, capacities=TWO_MODELS))
    assert "SUCCESS" in promtool("check", "rules", path)
    series = {}
    for n, (model, rate) in enumerate(per_second.items()):
        name = f'"{n}"'
        series[of_model(RUNNING, model).replace('"a"', name)] = "1x400"
        tokens = f"0+{rate * 60:g}x400"
        series[of_model(GENERATED, model).replace('"a"', name)] = tokens
    firing = 'count by (alertname, model_name) (ALERTS{alertname=~"VllmHeadroom|VllmIdleCost"})'
    found = [
        {"labels": f'{{alertname="VllmHeadroom",model_name={json.dumps(model)}}}', "value": 1}
        for model in full
    ]
    found += [{"labels": '{alertname="VllmIdleCost"}', "value": 1}] * idle
    # After 6.5 h every fleet with an idle engine is past its 10 USD.
    asked = {"expr": firing, "eval_time": "390m", "exp_samples": found}
    check(tmp_path, path, series, asked, every="4m")


def test_idle_dollars_of_models_add_up(tmp_path):
    path = tmp_path / "rules.yml"
    path.write_text(rules_yaml(RULES, usd_per_gpu_hour=2.0, capacities=TWO_MODELS))
    series = {
        RUNNING.replace('"m"', '"small"'): "1x1500",
        GENERATED.replace('"m"', '"small"'): "0+27000x1500",  # half the low end of the capacity
        RUNNING.replace('"m"', '"new"').replace('"a"', '"b"'): "1x1500",
        GENERATED.replace('"m"', '"new"').replace('"a"', '"b"'): "0+540x1500",  # the whole low end
    }
    asked = {"expr": "abs(job:vllm_idle_usd_per_day_at_least - 24) < bool 0.5", "eval_time": "24h"}
    expected = {**asked, "exp_samples": [{"labels": '{job="v"}', "value": 1}]}
    check(tmp_path, path, series, expected, every="4m")


def test_a_window_gives_the_capacity_of_each_model(tmp_path):
    out = tmp_path / "rules.yml"
    words = ["rules", "--window", "fleet-two-models", "--usd-per-hour", "2", "--out", str(out)]
    done = CliRunner().invoke(cli, [*words, "--below", "headroom=0.2"], catch_exceptions=False)
    text, found = out.read_text(), Analysis.of(open_window("fleet-two-models")).capacity_by_model
    for model, capacity in found.items():
        assert (f'model_name="{model}"' in text) is (not capacity.is_unknown)
        assert (f"no rules on headroom and idle cost of {model}" in done.stderr) is (
            capacity.is_unknown
        )
    assert "SUCCESS" in promtool("check", "rules", out)


def test_a_capacity_given_twice_is_refused():
    words = ["rules", "--capacity", "m=298", "--capacity", "m=300"]
    with pytest.raises(InputError, match="given twice for m"):
        CliRunner().invoke(cli, words, catch_exceptions=False)


@given(
    target=st.decimals("0.001", "999", places=3),
    edge=st.one_of(st.decimals("0.001", "2000", places=3), st.integers(1, 2000)),
)
def test_edges_are_compared_as_numbers(target, edge):
    is_above = re.fullmatch(at_or_above(float(target)), str(edge)) is not None
    assert is_above == (float(edge) >= float(target))


@pytest.mark.parametrize("edge", ["2.5", "2.50", "3", "3.0", "10.0", "+Inf"])
def test_edges_above_as_exporters_write_them(edge):
    assert re.fullmatch(at_or_above(2.5), edge)
    assert not re.fullmatch(at_or_above(2.5), "2.4999")


def test_grafana_knows_every_key_of_the_dashboard():
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()  # the types of panels and queries
    board = json.loads(dashboard_json(2.0))
    for keys, place in (((), ""), (("panels", 0, "targets", 0), ".panels[0].targets[0]")):
        odd = json.loads(json.dumps(board))
        reduce(getitem, keys, odd)["expression"] = "x"
        known = json.loads(JSONEncoder().encode(Dashboard.from_json(odd)))
        assert lacking(odd, known) == [f"{place}.expression"]


def lacking(given, known, place="") -> list[str]:
    """The places of a JSON value that another does not have, or has otherwise."""
    if isinstance(given, dict):
        return [
            where
            for key, value in given.items()
            for where in (
                lacking(value, known[key], f"{place}.{key}")
                if isinstance(known, dict) and key in known
                else [f"{place}.{key}"]
            )
        ]
    if isinstance(given, list):
        pairs = zip(given, known, strict=True)
        return [w for n, (a, b) in enumerate(pairs) for w in lacking(a, b, f"{place}[{n}]")]
    return [] if given == known else [place]


def test_the_dashboard_has_a_panel_for_each_question():
    board = json.loads(dashboard_json(2.0))
    titles = [panel["title"] for panel in board["panels"]]
    assert len(titles) == len(set(titles)) == 10
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert all(any(each.expression in one for one in asked) for each in recorded(2.0) if each.panel)
    places = {(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]}
    assert len(places) == len(titles), "no panel lies on another"
