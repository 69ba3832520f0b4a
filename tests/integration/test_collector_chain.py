"""The whole chain on loopback: recorded vLLM, real Collector, stand-in for Parseable, doctor.

What the doctor reads off the Collector is what this Collector really says of itself.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import yaml
from real_collector import CONFIG, Collector, collector_binary, eventually
from recorded_vllm import RecordedVllm

from tests.standin.server import Standin, User
from vllm_capacity.alerts import RULES
from vllm_capacity.live.doctor import diagnosis
from vllm_capacity.live.probes import Chain, CheckResult, first_broken, gather
from vllm_capacity.live.provision import alert_body, panels

pytestmark = pytest.mark.collector

USERS = {
    "root": User("root-password"),
    "collector": User("writes", "ingestor", ("vllm_metrics", "vllm_traces")),
    "planner": User("reads", "reader", ("vllm_metrics",)),
}


def _authorization(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


ONE_POINT = {
    "resourceMetrics": [
        {
            "scopeMetrics": [
                {
                    "metrics": [
                        {
                            "name": "x",
                            "gauge": {
                                "dataPoints": [
                                    {"timeUnixNano": "1795508222417654663", "asDouble": 1.0}
                                ]
                            },
                        }
                    ]
                }
            ]
        }
    ]
}
RIGHT = _authorization("collector", "writes")
WRONG = _authorization("collector", "guesses")


QUICK = "yaml:exporters::otlphttp/metrics::sending_queue::batch::flush_timeout: 1s"
"""Batches are sent after a second, not ten: what is looked at is what becomes of them."""


@contextmanager
def chain(
    folder: Path, *, authorization: str = RIGHT, options: tuple[str, ...] = (), **settings: str
) -> Iterator[tuple[RecordedVllm, Collector, Standin]]:
    binary = collector_binary()
    with Standin(users=dict(USERS)) as parseable, RecordedVllm() as vllm:
        collector = Collector(
            binary,
            folder,
            parseable.url,
            f"[{vllm.target}]",
            {"PARSEABLE_AUTHORIZATION": authorization, **settings},
            options=("--config", QUICK, *options),
        )
        try:
            collector.start()
            yield vllm, collector, parseable
        finally:
            collector.stop()


def findings(
    vllm: RecordedVllm,
    collector: Collector,
    parseable_url: str,
    *,
    ingest: str | None = None,
    config: Path | None = None,
) -> list[CheckResult]:
    looked_at = Chain(
        vllm=(f"http://{vllm.target}/metrics",),
        collector_metrics=f"http://127.0.0.1:{collector.ports['metrics']}/metrics",
        collector_health=f"http://127.0.0.1:{collector.ports['health']}/",
        parseable=parseable_url,
    )

    def wait_for_a_scrape() -> None:
        seen = len(vllm.served)
        eventually(lambda: len(vllm.served) >= seen + 3, within=60, what="three scrapes")

    with httpx.Client(timeout=30, trust_env=False) as client:
        evidence = gather(
            client,
            looked_at,
            clock=lambda: datetime.now(UTC),
            pause=wait_for_a_scrape,
            reader=httpx.BasicAuth("planner", "reads"),
            ingest_authorization=ingest,
            collector_config=yaml.safe_load(config.read_text()) if config else None,
        )
    return diagnosis(evidence)


def _first(found: list[CheckResult]) -> str | None:
    first = first_broken(found)
    return first.check if first else None


def _arrived(parseable: Standin) -> bool:
    return bool("vllm_metrics" in parseable.streams and parseable.streams["vllm_metrics"].batches)


def test_a_healthy_chain_is_reported_healthy(tmp_path: Path) -> None:
    with chain(tmp_path) as (vllm, collector, parseable):
        eventually(lambda: _arrived(parseable), within=90, what="a batch arrived")
        found = findings(vllm, collector, parseable.url, ingest=RIGHT, config=CONFIG)
        queries = [body for rule in RULES if (body := alert_body(rule, "vllm_metrics"))]
        with httpx.Client(
            base_url=parseable.url, auth=("planner", "reads"), trust_env=False, timeout=60
        ) as client:
            for query in [
                *(b["query"] for b in queries),
                *(p.query for p in panels("vllm_metrics")),
            ]:
                asked = {"query": query, "startTime": "10m", "endTime": "now"}
                answer = client.post("/api/v1/query", json=asked)
                assert answer.status_code == 200, (query, answer.text)
    assert [f for f in found if f.state != "ok"] == []
    assert {f.check for f in found} >= {
        "not-scraping",
        "export-refused",
        "queue-filling",
        "clock-skew",
    }


def test_the_collectors_wrong_password_is_found(tmp_path: Path) -> None:
    with chain(tmp_path, authorization=WRONG) as (vllm, collector, parseable):
        failed = "otelcol_exporter_send_failed_metric_points"
        eventually(
            lambda: failed in collector.own_metrics(), within=90, every=0.5, what="a refusal"
        )
        alone = findings(vllm, collector, parseable.url)
        parseable.ingest("vllm_metrics", "/v1/metrics", ONE_POINT)  # sent by another client
        with_secret = findings(vllm, collector, parseable.url, ingest=WRONG)
    assert (_first(alone), _first(with_secret)) == ("export-refused", "ingest-password")


def test_the_wrong_encoding_is_found_by_its_effect_and_in_the_file(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIG.read_text().replace("encoding: json #", "encoding: proto #"))
    override = "yaml:exporters::otlphttp/metrics::encoding: proto"
    with chain(tmp_path, options=("--config", override)) as (vllm, collector, parseable):
        failed = "otelcol_exporter_send_failed_metric_points"
        eventually(
            lambda: failed in collector.own_metrics(), within=90, every=0.5, what="a refusal"
        )
        by_effect = findings(vllm, collector, parseable.url)
        by_file = findings(vllm, collector, parseable.url, config=wrong)
    assert (_first(by_effect), _first(by_file)) == ("export-refused", "configuration")


def test_a_queue_that_fills_is_found(tmp_path: Path) -> None:
    with chain(tmp_path, OTELCOL_QUEUE_ITEMS="2500") as (vllm, collector, parseable):
        collector.stop()
        collector.sink_url = "http://127.0.0.1:9"  # nobody listens there
        collector.start()
        eventually(lambda: len(vllm.served) >= 24, within=60, what="24 scrapes")
        found = findings(vllm, collector, parseable.url)
    assert _first(found) in ("queue-filling", "queue-full", "collector-refuses")
