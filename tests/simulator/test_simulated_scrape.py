"""A simulated scrape has the shape of a recorded one, and says that it is simulated."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_capacity.sources.exposition import Scrape, ScrapeReader
from vllm_capacity.telemetry.rows import RowBuffer
from vllm_simulator.config import Request
from vllm_simulator.core import Engine
from vllm_simulator.exposition import exposition_text, record, saved_scrape
from vllm_simulator.scenarios import CPU_SERVER
from vllm_simulator.stats import Histogram, token_bounds

RECORDED = Path(__file__).parents[1] / "data" / "metrics_vllm_0.32.0.txt.gz"
BORN, NOW = 1_795_492_741.0, 1_795_492_800.0


@pytest.fixture(scope="module")
def stats():
    engine = Engine(CPU_SERVER)
    for number in range(60):
        engine.submit(Request(number * 0.5, 100 + number, 50))
    engine.advance(20.0)
    return engine.stats


def families(text):
    return {f.name: f for f in text_string_to_metric_families(text) if f.name.startswith("vllm:")}


def shape(text):
    return {
        (name, sample.name, tuple(sorted(sample.labels.items())))
        for name, family in families(text).items()
        if name != "vllm:cache_config_info"
        for sample in family.samples
    }


def test_names_labels_and_buckets_are_the_recorded_servers(stats):
    recorded = gzip.decompress(RECORDED.read_bytes()).decode()
    assert shape(exposition_text(stats, BORN)) == shape(recorded)


def test_kinds_and_their_order_are_the_recorded_servers(stats):
    recorded = families(gzip.decompress(RECORDED.read_bytes()).decode())
    simulated = families(exposition_text(stats, BORN))
    assert [(n, f.type) for n, f in simulated.items()] == [(n, f.type) for n, f in recorded.items()]


def test_every_help_line_says_that_it_is_simulated(stats):
    lines = exposition_text(stats, BORN).splitlines()
    texts = [line.split(" ", 3)[3] for line in lines if line.startswith("# HELP")]
    assert texts
    assert all(text.startswith("Simulated. ") for text in texts)


def test_rows_are_those_that_reading_the_text_gives(stats):
    buffer, reader = RowBuffer(), ScrapeReader()
    record(buffer, stats, process_start_seconds=BORN, t_seconds=NOW, target="a:1")
    line = json.loads(saved_scrape(stats, BORN, NOW, "a:1"))
    reader.add(Scrape(line["t"], line["target"], line["status"], line["text"], line["dur"]))
    own, read = buffer.rows(), reader.buffer.rows()
    for table in ("series", "samples", "histograms"):
        left, right = (getattr(rows, table).sort("series_id") for rows in (own, read))
        assert left.equals(right), table


@pytest.mark.parametrize(
    ("max_model_len", "last"),
    [
        pytest.param(1024, 1000.0, id="the largest step below the limit"),
        pytest.param(1000, 1000.0, id="the limit itself when it is a step"),
        pytest.param(131_072, 100_000.0, id="a long context"),
        pytest.param(1, 1.0, id="a single token"),
    ],
)
def test_token_buckets_end_at_the_models_length(max_model_len, last):
    assert token_bounds(max_model_len)[-1] == last


@pytest.mark.parametrize(
    ("value", "bucket"),
    [
        pytest.param(1.0, 0, id="on a bound belongs to it"),
        pytest.param(1.5, 1, id="between bounds"),
        pytest.param(9.0, 2, id="overflow"),
    ],
)
def test_an_observation_lands_in_its_bucket(value, bucket):
    histogram = Histogram([1.0, 2.0])
    histogram.observe(value, 3)
    expected = [0, 0, 0]
    expected[bucket] = 3
    assert (histogram.counts, histogram.total) == (expected, 3 * value)
