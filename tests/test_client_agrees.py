"""The recorded sweep against the load generator's own log: what the clients saw is the truth.

Columns of the log: see `data/README.md`. A row with n = 2 is two sequences on the server.
"""

import math
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from vllm_capacity.figures import latency

TRUTH = Path(__file__).parent / "truth"
NOISE_SECONDS = 0.02


@pytest.fixture(scope="module")
def log():
    return pl.read_parquet(TRUTH / "sweep_client.parquet")


@pytest.fixture(scope="module")
def result(answer_of):
    return answer_of("vllm-sweep")


def test_finished_is_every_sequence_of_an_ok_request(log, result):
    ok = log.filter(pl.col("status") == "ok")
    assert result["requests"]["finished"] == ok.get_column("n").sum()


@pytest.mark.parametrize("tokens", ["generation", "prompt"])
def test_tokens_are_those_of_ok_requests_and_of_interrupted_streams(log, result, tokens):
    ok = pl.col("status") == "ok"
    is_streamed = (pl.col("status") == "cancelled") & pl.col("t_first").is_not_null()
    seen = {
        "generation": pl.when(ok).then("output_tokens").otherwise("stream_tokens"),
        "prompt": pl.col("prompt_tokens") * pl.col("n"),
    }[tokens]
    total = log.filter(ok | is_streamed).select(seen.sum()).item()
    assert result["tokens"][tokens] == pytest.approx(total, rel=0.005)


def test_abandoned_streams_are_those_the_clients_cancelled_after_a_first_token(log, result):
    left = log.filter((pl.col("status") == "cancelled") & pl.col("t_first").is_not_null()).height
    # One more may have left while its first token was in transit.
    assert result["failures"]["abandoned"]["mid"] - left in (0, 1)


def test_the_share_of_bad_requests_is_the_clients(log, result):
    refused = log.filter(pl.col("status") == "http_error").height
    share = result["failures"]["http_4xx_ratio"]["mid"]
    assert share == pytest.approx(refused / log.height, rel=0.02)


def test_the_loss_in_the_restart_is_within_its_bounds(answer_of):
    finished = pl.read_parquet(TRUTH / "restart_client.parquet").filter(pl.col("status") == "ok")
    requests = answer_of("vllm-restart")["requests"]
    gone = finished.get_column("n").sum() - requests["finished"]
    assert gone > 0
    assert requests["lost"]["low"] <= gone <= requests["lost"]["high"]


STEPS = pl.read_csv(TRUTH / "sweep_client_steps.csv").filter(pl.col("t").is_not_null())


def load_steps():
    times = STEPS.get_column("t").to_list()
    loads = STEPS.get_column("conc").to_list()
    return [
        pytest.param(start, end, id=f"{conc:g} clients")
        for start, end, conc in zip(times, times[1:], loads, strict=False)
        if conc
    ]


def nearest_rank(values, q):
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


@pytest.mark.parametrize("name", ["ttft", "e2e"])
@pytest.mark.parametrize(("start", "end"), load_steps())
def test_the_clients_quantiles_lie_within_the_bounds(sweep, log, start, end, name):
    event = {"ttft": "t_first", "e2e": "t_end"}[name]
    inside = log.filter((pl.col(event) >= start) & (pl.col(event) < end))
    if name == "e2e":
        inside = inside.filter(pl.col("status") == "ok")
        inside = inside.select(pl.col("e2e_s").repeat_by("n").explode(empty_as_null=False))
    values = inside.get_column(f"{name}_s").drop_nulls().to_list()
    time_range = sweep.clamp(datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC))
    increases = latency.histogram_increases(sweep, latency.HISTOGRAMS, time_range=time_range)
    figures = getattr(latency.latency(increases), f"{name}_seconds")
    for quantile, q in latency.QUANTILES.items():
        bounds, truth = getattr(figures, quantile), nearest_rank(values, q)
        assert bounds.lower - NOISE_SECONDS <= truth <= bounds.upper + NOISE_SECONDS, quantile
