"""Other versions' names: real scrapes of vLLM 0.9.2 (engines V0 and V1), read under today's."""

import gzip
from pathlib import Path

import pytest

from tests.answering import answer
from vllm_capacity.sources.exposition import Scrape, ScrapeReader
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window

DATA = Path(__file__).parent / "data"


def text(name):
    return gzip.decompress((DATA / f"metrics_{name}.txt.gz").read_bytes()).decode()


def window_of(tmp_path, *names):
    reader = ScrapeReader()
    for number, name in enumerate(names):
        reader.add(Scrape(1.8e9 + 60 * number, "vllm", 200, text(name)))
    return open_window(write_window(tmp_path / "w", reader.buffer.rows(), {}))


@pytest.fixture
def v1(tmp_path):
    return answer(window_of(tmp_path / "v1", "vllm_0.9.2_v1_idle", "vllm_0.9.2_v1"))


@pytest.fixture
def v0(tmp_path):
    return answer(window_of(tmp_path / "v0", "vllm_0.9.2_v0_idle", "vllm_0.9.2_v0"))


def test_v1_counts_what_grew_between_its_two_scrapes(v1):
    grown = {}
    for name in ("vllm_0.9.2_v1_idle", "vllm_0.9.2_v1"):
        lines = [line for line in text(name).splitlines() if line.startswith("vllm:")]
        grown[name] = {
            metric: sum(
                float(line.rpartition(" ")[2]) for line in lines if line.startswith(metric + "{")
            )
            for metric in ("vllm:generation_tokens_total", "vllm:request_success_total")
        }
    idle, loaded = grown.values()
    assert v1["tokens"]["generation"] == pytest.approx(
        loaded["vllm:generation_tokens_total"] - idle["vllm:generation_tokens_total"]
    )
    assert v1["requests"]["finished"] == pytest.approx(
        loaded["vllm:request_success_total"] - idle["vllm:request_success_total"]
    )


def test_v1_has_one_engine_and_one_kv_ratio_though_it_exposes_two_names(v1):
    assert v1["window"]["engines"] == 1
    assert 0 < v1["kv_cache_ratio"]["max"] <= 1
    checks = [f["check"] for f in v1["quality"]]
    assert "renamed" in checks


def test_v1_has_inter_token_latency_under_its_older_name(v1):
    assert v1["latency"]["itl_seconds"]["p50"]["value"] > 0


def test_what_a_version_does_not_expose_is_unknown(v1, v0):
    assert v1["tokens"]["prompt_computed"] is None
    assert v0["prefix_cache_hit_ratio"] is None


def test_v0_without_an_engine_label_is_engine_0_and_counts_from_zero(v0):
    """Its series appear on first use, after an idle scrape without them."""
    loaded = text("vllm_0.9.2_v0").splitlines()
    total = sum(
        float(line.rpartition(" ")[2])
        for line in loaded
        if line.startswith("vllm:generation_tokens_total{")
    )
    assert (v0["window"]["engines"], v0["tokens"]["generation"]) == (1, total)


def test_an_upgrade_inside_the_window_is_one_engine_that_restarted(tmp_path):
    result = answer(window_of(tmp_path, "vllm_0.9.2_v1", "vllm_0.32.0"))
    assert result["window"]["engines"] == 1
    assert {"restart", "bounds"} & {f["check"] for f in result["quality"]}
