"""The named scenarios: each is what its name says, and the worked example is as published."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest
from click.testing import CliRunner
from msgspec.structs import replace
from polars.testing import assert_frame_equal

from vllm_capacity.cli.simulate import simulate as simulate_verb
from vllm_capacity.errors import InputError, WindowError
from vllm_capacity.sources.exposition import read_scrapes
from vllm_capacity.telemetry.settling import settle
from vllm_capacity.telemetry.window import open_window
from vllm_simulator.scenarios import SCENARIOS, scenario
from vllm_simulator.simulate import run_scenario

EXAMPLE = Path(__file__).parents[2] / "data" / "examples" / "a100-gpt-oss-20b"


def gauge(rows, name):
    ids = rows.series.filter(pl.col("metric") == f"vllm:{name}")["series_id"]
    return rows.samples.filter(pl.col("series_id").is_in(ids.implode())).sort("ts")["value"]


def gauges(name):
    rows = run_scenario(scenario(name)).rows
    names = ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc")
    running, waiting, kv = (gauge(rows, metric) for metric in names)
    return running, waiting, kv, gauge(rows, "num_preemptions_total")


def test_client_bound_never_queues_nor_fills_the_cache():
    _, waiting, kv, preemptions = gauges("client-bound")
    assert (waiting.max(), preemptions.max()) == (0, 0)
    assert kv.max() < 0.5


def test_kv_bound_fills_the_cache_preempts_and_queues_below_its_slots():
    running, waiting, kv, preemptions = gauges("kv-bound")
    busy = slice(100, None)
    assert kv[busy].mean() > 0.9
    assert waiting[busy].mean() > 3
    assert preemptions.max() > 100
    assert running.max() < 64


def test_scheduler_bound_runs_at_its_slots_and_queues_at_low_kv():
    running, waiting, kv, preemptions = gauges("scheduler-bound")
    busy = slice(75, None)
    assert (running[busy] >= 7).mean() > 0.95
    assert waiting[busy].min() > 0
    assert kv.max() < 0.6
    assert preemptions.max() == 0


def test_prefill_bound_queues_without_bound_below_its_slots_and_at_kv_under_ten_percent():
    running, waiting, kv, _ = gauges("prefill-bound")
    assert kv.max() < 0.10
    assert waiting[-1] > 100
    assert waiting[-1] > 1.5 * waiting[120]
    assert running.max() < 256
    assert (running[75:] < running.max() - 1).mean() > 0.5


def test_an_idle_server_changes_only_up():
    rows = run_scenario(scenario("idle")).rows
    up = rows.series.filter(pl.col("metric") == "up")["series_id"]
    assert (
        rows.samples.filter(pl.col("series_id").is_in(up.implode()))["value"].to_list() == [1] * 61
    )
    assert rows.histograms["count"].max() == 0


@pytest.mark.parametrize("known", SCENARIOS, ids=lambda known: known.name)
def test_a_scenario_states_its_assumptions_and_ends_on_a_scrape(known):
    assert known.assumptions
    assert known.scrape_times[-1] == known.seconds


def test_an_unknown_scenario_names_the_nearest():
    with pytest.raises(InputError, match="kv-bound"):
        scenario("kv-bund")


@pytest.fixture(scope="module")
def example():
    return open_window(EXAMPLE)


def test_the_worked_example_says_that_it_is_simulated(example):
    assert example.is_simulated
    assert example.provenance["seed"] == scenario("a100-gpt-oss-20b").seed
    assert any("not published" in line for line in example.provenance["assumptions"])


def test_the_worked_example_lasts_3_15_hours_from_first_to_last_attempt(example):
    attempts = example.sql(
        "select min(ts) as first, max(ts) as last from samples join series using (series_id) "
        "where metric = 'up'"
    ).row(0)
    assert (attempts[1] - attempts[0]).total_seconds() == 3.15 * 3600


def test_the_worked_example_counts_5138_successful_requests_and_no_other_ending(example):
    finished = example.sql(
        "select labels, min(value) as first, max(value) as last from samples "
        "join series using (series_id) where metric = 'vllm:request_success_total' group by labels"
    )
    assert finished["first"].to_list() == [0.0] * 5
    ended = {
        json.loads(row["labels"])["finished_reason"]: row["last"] for row in finished.to_dicts()
    }
    assert ended["stop"] + ended["length"] == 5138
    assert ended["stop"] > ended["length"] > 0
    assert (ended["abort"], ended["error"], ended["repetition"]) == (0, 0, 0)


def test_the_worked_example_is_idle_at_both_ends(example):
    running = example.sql(
        "select value from samples join series using (series_id) "
        "where metric = 'vllm:num_requests_running' order by ts"
    )["value"]
    assert (running[0], running[-1]) == (0, 0)


def test_the_worked_example_is_what_the_scenario_gives(example):
    """Its first half hour, made again."""
    shorter = replace(scenario("a100-gpt-oss-20b"), seconds=1800)
    made = settle(run_scenario(shorter).rows)
    last = made.samples["ts"].max()
    for table in ("samples", "histograms"):
        kept = example.sql(
            f"select * from {table} where ts <= $last order by series_id, ts", last=last
        )
        frame = getattr(made, table).sort("series_id", "ts").select(kept.columns)
        # Sums of seconds may differ in the last digit from one processor to the next.
        assert_frame_equal(kept, frame, rel_tol=1e-9)


def test_the_worked_example_is_small():
    sizes = [path.stat().st_size for path in EXAMPLE.rglob("*") if ".rollup" not in path.parts]
    assert sum(size for size in sizes) < 1_500_000


def test_the_command_writes_a_labelled_window_and_the_truth(tmp_path):
    target, truth = tmp_path / "made", tmp_path / "truth.parquet"
    result = CliRunner().invoke(
        simulate_verb,
        ["client-bound", "--to", str(target), "--requests", str(truth), "--seed", "3"],
    )
    assert (result.exit_code, "simulated" in result.output) == (0, True)
    window = open_window(target)
    assert (window.is_simulated, window.provenance["seed"]) == (True, 3)
    finished = window.sql(
        "select max(value) as n from samples join series using (series_id) "
        "where metric = 'vllm:request_success_total' group by series_id"
    )["n"].sum()
    assert finished == pl.read_parquet(truth).filter(pl.col("status") != "cancelled").height


@pytest.mark.parametrize("name", ["made.jsonl", "made.jsonl.gz"])
def test_the_command_writes_scrapes_that_read_back_as_the_same_rows(tmp_path, name):
    target = tmp_path / name
    result = CliRunner().invoke(simulate_verb, ["idle", "--to", str(target)])
    assert result.exit_code == 0, result.output
    read, own = read_scrapes(target), run_scenario(scenario("idle")).rows
    order = ["series_id", "ts"]
    assert read.samples.sort(order).equals(own.samples.sort(order))
    assert read.histograms.sort(order).equals(own.histograms.sort(order))


def test_the_same_scenario_gives_the_same_bytes(tmp_path):
    paths = [tmp_path / "a.jsonl.gz", tmp_path / "b.jsonl.gz"]
    for path in paths:
        CliRunner().invoke(simulate_verb, ["idle", "--to", str(path)])
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert gzip.decompress(paths[0].read_bytes()).count(b"\n") == 61


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        pytest.param(["nowhere", "--to", "x"], InputError, id="no such scenario"),
        pytest.param(["idle", "--to", "."], InputError, id="the target exists"),
    ],
)
def test_the_command_refuses_and_leaves_nothing(tmp_path, monkeypatch, arguments, error):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(simulate_verb, arguments)
    assert isinstance(result.exception, error | WindowError)
    assert list(tmp_path.iterdir()) == []
