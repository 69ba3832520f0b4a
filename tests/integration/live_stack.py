"""The stack set up on a real Parseable, fed by the real Collector, killed and restarted, examined.

Run by `make test-live`, which names a binary in PARSEABLE_BIN; the Collector is that of
tests/otelcol.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
import yaml
from real_collector import CONFIG, Collector, collector_binary, eventually
from recorded_vllm import RecordedVllm

from tests.integration.real_parseable import ROOT, RealParseable, real_parseable
from vllm_capacity.alerts import RULES, AlertRule, with_thresholds
from vllm_capacity.errors import InputError, NoTelemetryError, SourceError
from vllm_capacity.live.doctor import diagnosis
from vllm_capacity.live.probes import Chain, gather
from vllm_capacity.live.provision import (
    DashboardPanel,
    panels,
    provision_alerts,
    provision_dashboard,
)
from vllm_capacity.live.stack import INGEST_SECRET, READER_SECRET, Management, Names, initialise
from vllm_capacity.sources.http import NO_KEEPALIVE
from vllm_capacity.sources.parseable import Parseable
from vllm_capacity.sources.parseable_queries import resolve

pytestmark = [pytest.mark.live, pytest.mark.collector]


@dataclass
class Running:
    """A real Parseable that was set up, and the output of the setup."""

    parseable: RealParseable
    secrets: Path
    output: list[str]

    @property
    def reader(self) -> httpx.BasicAuth:
        return httpx.BasicAuth("planner", (self.secrets / READER_SECRET).read_text())


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("stack")
    with (
        real_parseable(folder) as parseable,
        httpx.Client(base_url=parseable.url, auth=ROOT, timeout=60, limits=NO_KEEPALIVE) as client,
    ):
        output = initialise(client, Names(), folder / "secrets", retention_days=30)
        yield Running(parseable, folder / "secrets", output)


def test_the_users_have_their_rights_and_no_others(running: Running) -> None:
    assert running.output[-2:] == [
        "checked: collector can write and cannot read",
        "checked: planner cannot write and can read",
    ]


def test_init_can_be_repeated_and_renews_passwords_on_request(running: Running) -> None:
    ingest = running.secrets / INGEST_SECRET
    with _administrator(running) as client:
        again = initialise(client, Names(), running.secrets)
        before = ingest.read_text()
        renewed = initialise(client, Names(), running.secrets, renew=True)
    assert sum("exists already" in line for line in again) == 4
    assert ingest.read_text() != before
    assert renewed[-2:] == running.output[-2:]


def test_an_empty_or_missing_stream_is_reported(running: Running) -> None:
    url = running.parseable.url
    with httpx.Client(base_url=url, auth=running.reader, timeout=60) as client:
        parseable = Parseable(client)
        with pytest.raises(NoTelemetryError, match="is empty: nothing has come in yet"):
            resolve("vllm_metrics", parseable.columns("vllm_metrics"))
        with pytest.raises(InputError, match=r"no stream 'nope'.*there: vllm_metrics, vllm_traces"):
            parseable.columns("nope")


def test_rules_wait_for_telemetry(running: Running) -> None:
    with (
        _administrator(running) as client,
        pytest.raises(SourceError, match="no columns until telemetry has arrived"),
    ):
        provision_alerts(Management(client), "vllm_metrics")


def _administrator(running: Running) -> httpx.Client:
    return httpx.Client(base_url=running.parseable.url, auth=ROOT, timeout=60, limits=NO_KEEPALIVE)


def test_what_the_collector_scraped_is_there_and_the_doctor_is_content(
    running: Running, tmp_path: Path
) -> None:
    secret = running.secrets / INGEST_SECRET
    with RecordedVllm() as vllm:
        collector = Collector(
            collector_binary(),
            tmp_path,
            running.parseable.url,
            f"[{vllm.target}]",
            {"PARSEABLE_AUTHORIZATION": f"${{file:{secret}}}"},
        )
        try:
            collector.start()
            eventually(lambda: _points(running), within=120, every=1.0, what="points in Parseable")
            collector.kill()
            collector.start()
            found = _findings(running, vllm, collector)
            eventually(lambda: vllm.is_used_up, within=60, what="the recording is used up")
            served = len(vllm.served)
            eventually(
                lambda: _points(running) >= served - 1, within=120, every=1.0, what="every scrape"
            )
        finally:
            collector.stop()
    assert [f for f in found if f.state != "ok"] == []


def test_provision_can_be_repeated_and_updates(running: Running) -> None:
    """After the test before it, which brought the telemetry."""
    board, changed = panels("vllm_metrics"), with_thresholds({"waiting": 9.0})
    with _administrator(running) as client:
        management = Management(client)

        def provisioned(shown: list[DashboardPanel], rules: Iterable[AlertRule]) -> str:
            lines = [provision_dashboard(management, shown, "vllm_metrics")]
            return "\n".join(lines + provision_alerts(management, "vllm_metrics", rules))

        output = [provisioned(board, RULES) for _ in range(2)]
        output += [provisioned(board[:1], changed) for _ in range(2)]
        titles = [alert["title"] for alert in management.records("/api/v1/alerts")]
        boards = management.records("/api/v1/dashboards")
    assert output[0].count(": created") == 4
    assert output[1].count("exists already") == 4
    assert output[2].count("updated") == 2
    assert output[3].count("exists already") == 4
    assert len(titles) == len(set(titles)) == 3
    assert len(boards) == 1


def _points(running: Running) -> int:
    """Good samples of one counter: one per scrape. Refused while the stream has no column yet."""
    query = (
        "select count(distinct data_point_value) as n from vllm_metrics "
        "where metric_name = 'vllm:generation_tokens_total'"
    )
    answer = httpx.post(
        f"{running.parseable.url}/api/v1/query",
        json={"query": query, "startTime": "1h", "endTime": "now"},
        auth=running.reader,
        timeout=60,
    )
    return int(answer.json()[0]["n"]) if answer.status_code == 200 else 0


def _findings(running: Running, vllm: RecordedVllm, collector: Collector) -> list[object]:
    chain = Chain(
        vllm=(f"http://{vllm.target}/metrics",),
        collector_metrics=f"http://127.0.0.1:{collector.ports['metrics']}/metrics",
        collector_health=f"http://127.0.0.1:{collector.ports['health']}/",
        parseable=running.parseable.url,
    )

    def wait_for_a_scrape() -> None:
        seen = len(vllm.served)
        eventually(lambda: len(vllm.served) >= seen + 3, within=60, what="three scrapes")

    with httpx.Client(timeout=60, limits=NO_KEEPALIVE) as client:
        evidence = gather(
            client,
            chain,
            clock=lambda: datetime.now(UTC),
            pause=wait_for_a_scrape,
            reader=running.reader,
            ingest_authorization=(running.secrets / INGEST_SECRET).read_text(),
            collector_config=yaml.safe_load(CONFIG.read_text()),
        )
    return list(diagnosis(evidence))
