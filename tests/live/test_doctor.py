"""Each fault planted in a chain that works: the doctor names it, and names it first."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from msgspec.structs import replace
from recorded_parseable import recorded

from tests.render.answer_by_hand import answer as made
from tests.render.answer_by_hand import unknown
from vllm_capacity.answer import Answer
from vllm_capacity.figures.latency import Quantile
from vllm_capacity.live.checks_flow import longest_wait_seconds
from vllm_capacity.live.doctor import diagnosis
from vllm_capacity.live.probes import Chain, CheckResult, ask, first_broken, gather
from vllm_capacity.verdicts.quality.evidence import Finding as Doubt

NOW = datetime(2026, 11, 24, 8, 20, 30, tzinfo=UTC)
ROOT = Path(__file__).parents[2]
SCRAPE = (ROOT / "tests/data/live/metrics_vllm_0.32.0.txt").read_text()
CONFIG = yaml.safe_load((ROOT / "otel-config.yaml").read_text())
SCHEMA = next(
    e["response"] for e in recorded() if e["path"] == "/api/v1/logstream/vllm_metrics/schema"
)
READER = ("planner", "reads")
INGEST = "Basic " + base64.b64encode(b"collector:writes").decode()
CHAIN = Chain(
    vllm=("http://vllm-a:8000/metrics", "http://vllm-b:8000/metrics"),
    proxy="http://proxy:9090/health",
    collector_metrics="http://collector:8888/metrics",
    collector_health="http://collector:13133/",
    parseable="http://parseable:8000",
)
COLLECTOR = """\
# TYPE otelcol_exporter_enqueue_failed_metric_points counter
otelcol_exporter_enqueue_failed_metric_points_total{{exporter="otlphttp/metrics"}} {enqueue_failed}
# TYPE otelcol_exporter_queue_capacity gauge
otelcol_exporter_queue_capacity{{data_type="metrics",exporter="otlphttp/metrics"}} 1000
# TYPE otelcol_exporter_queue_size gauge
otelcol_exporter_queue_size{{data_type="metrics",exporter="otlphttp/metrics"}} {queue}
# TYPE otelcol_exporter_send_failed_metric_points counter
otelcol_exporter_send_failed_metric_points_total{{exporter="otlphttp/metrics"}} {failed}
# TYPE otelcol_exporter_sent_metric_points counter
otelcol_exporter_sent_metric_points_total{{exporter="otlphttp/metrics"}} {sent}
# TYPE otelcol_receiver_accepted_metric_points counter
otelcol_receiver_accepted_metric_points_total{{receiver="prometheus"}} {accepted}
# TYPE otelcol_receiver_refused_metric_points counter
otelcol_receiver_refused_metric_points_total{{receiver="prometheus"}} {refused}
"""
HEALTHY = {
    "accepted": 500,
    "refused": 0,
    "sent": 400,
    "failed": 0,
    "queue": 20,
    "enqueue_failed": 0,
}


def _ts(seconds_ago: float) -> str:
    moment = NOW - timedelta(seconds=seconds_ago)
    return moment.replace(tzinfo=None).isoformat(timespec="milliseconds")


@dataclass
class World:
    """A healthy chain: all its hosts, answering like the recordings."""

    down: set[str] = field(default_factory=set)
    scrapes: dict[str, tuple[int, str]] = field(default_factory=dict)
    proxy: tuple[int, str] = (200, "ok")
    before: dict[str, float] = field(default_factory=lambda: {**HEALTHY})
    after: dict[str, float] = field(
        default_factory=lambda: {**HEALTHY, "accepted": 700, "sent": 600}
    )
    looks: int = 0
    config: dict[str, Any] | None = field(default_factory=lambda: copy.deepcopy(CONFIG))
    logins: dict[str, str] = field(default_factory=lambda: {READER[0]: READER[1]})
    ingest_status: int = 200
    about: dict[str, Any] = field(default_factory=lambda: {"version": "v2.9.5"})
    clock_ahead_seconds: float = 0.0
    schema: tuple[int, str] = (404, "")
    info: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, Any] = field(
        default_factory=lambda: {
            "metric_type in": [
                {"metric_type": "gauge", "points": 90, "filled": 88},
                {"metric_type": "sum", "points": 90, "filled": 88},
            ],
            "group by p_timestamp": [
                {"arrived": _ts(12), "newest": _ts(14)},
                {"arrived": _ts(2), "newest": _ts(6)},
            ],
            "metric_name = 'up'": [
                {"instance": "vllm-a:8000", "tried": _ts(6), "scraped": _ts(6)},
                {"instance": "vllm-b:8000", "tried": _ts(6), "scraped": _ts(6)},
            ],
        }
    )
    answer: Answer | None = None
    streams: tuple[str, ...] = ("vllm_metrics",)
    secret: str = INGEST
    writes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        exchanges = recorded()
        self.schema = (200, SCHEMA)
        self.refusal = next(e["response"] for e in exchanges if e["status"] == 403)
        self.no_stream = next(e["response"] for e in exchanges if e["status"] == 404)
        self.no_right = next(
            e["response"] for e in exchanges if "does not have access" in e["response"]
        )

    def __call__(self, request: httpx.Request) -> httpx.Response:
        host = request.url.host
        if host in self.down:
            raise httpx.ConnectError("connection refused", request=request)
        if host.startswith("vllm"):
            status, text = self.scrapes.get(host, (200, SCRAPE))
            return httpx.Response(status, text=text)
        if host == "proxy":
            return httpx.Response(self.proxy[0], text=self.proxy[1])
        if host == "collector":
            return self._collector(request)
        date = (NOW + timedelta(seconds=self.clock_ahead_seconds)).strftime(
            "%a, %d %b %Y %H:%M:%S GMT"
        )
        answer = self._parseable(request)
        answer.headers["Date"] = date
        return answer

    def _collector(self, request: httpx.Request) -> httpx.Response:
        if request.url.port == 13133:
            return httpx.Response(200, json={"status": "Server available"})
        self.looks += 1
        counts = self.before if self.looks == 1 else self.after
        return httpx.Response(200, text=COLLECTOR.format(**counts))

    def _parseable(self, request: httpx.Request) -> httpx.Response:
        path = request.url.path
        if path == "/api/v1/liveness":
            return httpx.Response(200)
        if path == "/v1/metrics":
            self.writes.append(request.headers["X-P-Stream"])
            right = request.headers["Authorization"] == INGEST
            return httpx.Response(self.ingest_status if right else 403)
        encoded = request.headers["Authorization"].removeprefix("Basic ")
        user, _, password = base64.b64decode(encoded).decode().partition(":")
        if self.logins.get(user) != password:
            return httpx.Response(403, text=self.refusal)
        if path == "/api/v1/about":
            return httpx.Response(200, json=self.about)
        if path == "/api/v1/logstream":
            return httpx.Response(200, json=[{"name": name} for name in ("pstats", *self.streams)])
        if path.endswith("/schema"):
            return httpx.Response(self.schema[0], text=self.schema[1])
        if path.endswith("/info"):
            return httpx.Response(200, json=self.info)
        query = json.loads(request.content)["query"]
        [rows] = [rows for part, rows in self.rows.items() if part in query]
        return rows if isinstance(rows, httpx.Response) else httpx.Response(200, json=rows)

    def findings(self, chain: Chain = CHAIN, **given: Any) -> list[CheckResult]:
        with httpx.Client(transport=httpx.MockTransport(self), trust_env=False) as client:
            evidence = gather(
                client,
                chain,
                clock=lambda: NOW,
                pause=lambda: None,
                reader=httpx.BasicAuth(*READER),
                ingest_authorization=given.get("secret", self.secret),
                collector_config=given.get("config", self.config),
                answer=self.answer,
            )
        return diagnosis(evidence)


def _answer(**changes: Any) -> Answer:
    return made(
        window__engines=changes.get("engines", 2),
        quality=changes.get("quality", ()),
        latency__e2e_seconds__p99=Quantile(3.0, 2.5),
        cost__allocation_usd=unknown(),
    )


def _set(**changes: Any) -> Callable[[World], None]:
    def plant(world: World) -> None:
        for name, value in changes.items():
            setattr(world, name, value)

    return plant


def _scrape(text: str, status: int = 200) -> Callable[[World], None]:
    return lambda world: world.scrapes.update({"vllm-b": (status, text)})


def _count(**counts: float) -> Callable[[World], None]:
    return lambda world: world.after.update(counts)


def _rows(part: str, rows: Any) -> Callable[[World], None]:
    return lambda world: world.rows.update({part: rows})


def _without_encoding(world: World) -> None:
    assert world.config is not None
    del world.config["exporters"]["otlphttp/metrics"]["encoding"]


def _metrics_headers_on_traces(world: World) -> None:
    assert world.config is not None
    headers = world.config["exporters"]["otlphttp/traces"]["headers"]
    headers["X-P-Log-Source"] = "otel-metrics"


def _batch_processor(world: World) -> None:
    assert world.config is not None
    world.config["service"]["pipelines"]["metrics"]["processors"].append("batch")


def _password_in_the_file(world: World) -> None:
    assert world.config is not None
    headers = world.config["exporters"]["otlphttp/metrics"]["headers"]
    headers["Authorization"] = "Basic YWRtaW46YWRtaW4="


def _default_password(world: World) -> None:
    world.logins["admin"] = "admin"


def _columns(old: str, new: str) -> Callable[[World], None]:
    return _set(schema=(200, SCHEMA.replace(f'"{old}"', f'"{new}"')))


def _never_filled(world: World) -> None:
    """As a 2.9.5 answers: no columns, and every query on one refused."""
    world.schema = (200, '{"fields":[],"metadata":{}}')
    for part, column in ((BATCHES, "p_timestamp"), (INSTANCES, "metric_name")):
        output = f"Datafusion Error: Schema error: No field named {column}."
        world.rows[part] = httpx.Response(400, text=output)


UNTYPED = SCRAPE.replace("\nvllm:", "\nvllm_")
BATCHES, INSTANCES = "group by p_timestamp", "metric_name = 'up'"
NO_B = [{"instance": "vllm-a:8000", "tried": _ts(6), "scraped": _ts(6)}]
B_FAILS = [*NO_B, {"instance": "vllm-b:8000", "tried": _ts(6)}]
STALE = [{"arrived": _ts(200), "newest": _ts(204)}]
AHEAD = [{"arrived": _ts(12), "newest": _ts(-18)}, {"arrived": _ts(2), "newest": _ts(-28)}]
BEHIND = [{"arrived": _ts(-80), "newest": _ts(12)}]
HOLLOW = [{"metric_type": "sum", "points": 90, "filled": 0}]
DOUBT = (Doubt("coverage", "error", 1, "half is missing"),)

FAULTS = [
    pytest.param(_set(down={"vllm-b"}), "no-metrics", id="vLLM is down"),
    pytest.param(_scrape("not found", 404), "no-metrics", id="no /metrics there"),
    pytest.param(_scrape("# TYPE up gauge\nup 1\n"), "no-metrics", id="metrics, but none of vLLM"),
    pytest.param(_scrape(UNTYPED), "types-lost", id="samples renamed, types not"),
    pytest.param(_set(down={"proxy"}), "proxy-silent", id="the proxy is silent"),
    pytest.param(_set(proxy=(503, "refused")), "proxy-silent", id="nothing behind the proxy"),
    pytest.param(_set(down={"collector"}), "collector-down", id="the Collector is down"),
    pytest.param(_without_encoding, "configuration", id="wrong encoding"),
    pytest.param(_metrics_headers_on_traces, "configuration", id="traces with metrics headers"),
    pytest.param(_batch_processor, "configuration", id="a batch processor"),
    pytest.param(_password_in_the_file, "configuration", id="a password in the configuration"),
    pytest.param(_count(accepted=500), "not-scraping", id="the Collector does not scrape"),
    pytest.param(_count(refused=9), "collector-refuses", id="its memory limit is reached"),
    pytest.param(_set(down={"parseable"}), "parseable-down", id="Parseable is down"),
    pytest.param(_default_password, "default-password", id="default password in use"),
    pytest.param(_set(logins={}), "wrong-password", id="wrong password"),
    pytest.param(_set(about={"version": "v2.5.3"}), "old-version", id="a Parseable too old"),
    pytest.param(_set(ingest_status=403), "ingest-password", id="the Collector's wrong password"),
    pytest.param(_set(secret=INGEST + "\n"), "ingest-password", id="a newline after the secret"),
    pytest.param(_count(failed=80, sent=400), "export-refused", id="exports are refused"),
    pytest.param(_count(queue=700), "queue-filling", id="the Collector's queue fills"),
    pytest.param(_count(enqueue_failed=5), "queue-full", id="the queue is full"),
    pytest.param(_set(schema=(404, "Stream not found: x")), "stream-absent", id="stream absent"),
    pytest.param(_rows(BATCHES, []), "stream-empty", id="stream empty"),
    pytest.param(_never_filled, "stream-empty", id="nothing ever came into the stream"),
    pytest.param(_rows(BATCHES, STALE), "stream-stale", id="stream stale"),
    pytest.param(
        lambda w: (_rows(BATCHES, [])(w), _set(info={"latestEventAt": "2026-11-24T07:00"})(w)),
        "stream-stale",
        id="nothing came for long",
    ),
    pytest.param(
        lambda w: w.rows.update({BATCHES: httpx.Response(400, text=w.no_right)}),
        "no-right",
        id="no right to the stream",
    ),
    pytest.param(
        _columns("data_point_value", "value"), "columns-unexpected", id="columns unexpected"
    ),
    pytest.param(_rows("metric_type in", HOLLOW), "values-lost", id="integers lost their value"),
    pytest.param(_rows(BATCHES, AHEAD), "clock-skew", id="the Collector's clock is ahead"),
    pytest.param(_rows(BATCHES, BEHIND), "clock-skew", id="the Collector's clock is behind"),
    pytest.param(_set(clock_ahead_seconds=90), "clock-skew", id="Parseable's clock is off"),
    pytest.param(_rows(INSTANCES, NO_B), "replica-unscraped", id="an unscraped replica"),
    pytest.param(_rows(INSTANCES, B_FAILS), "replica-unscraped", id="a replica never reached"),
    pytest.param(_set(answer=_answer(engines=0)), "window-empty", id="an empty window"),
    pytest.param(_set(answer=_answer(quality=DOUBT)), "figures-doubtful", id="doubtful figures"),
]


def test_a_healthy_chain_has_no_fault() -> None:
    world = World(answer=_answer())
    findings = world.findings()
    assert [f for f in findings if f.state != "ok" and f.check != "no-price"] == []
    assert len(findings) > 15


@pytest.mark.parametrize(("plant", "check"), FAULTS)
def test_a_planted_fault_is_the_first_that_is_named(
    plant: Callable[[World], None], check: str
) -> None:
    world = World()
    plant(world)
    first = first_broken(world.findings())
    assert first is not None
    assert (first.check, bool(first.remedy)) == (check, True), first


def test_columns_with_the_prefix_of_older_releases_are_expected() -> None:
    world = World()
    _columns("model_name", "metric_model_name")(world)
    assert first_broken(world.findings()) is None


@pytest.mark.parametrize(
    ("plant", "check", "says"),
    [
        pytest.param(
            _set(),
            "configuration",
            "Parseable accepts what it sends, and its queue survives a crash",
            id="a configuration in order",
        ),
        pytest.param(
            _set(after={**HEALTHY, "accepted": 2_000_500, "sent": 1_234_567}),
            "not-scraping",
            "2,000,000 points accepted just now",
            id="millions of points in figures",
        ),
        pytest.param(
            _set(after={**HEALTHY, "accepted": 700, "sent": 1_234_567}),
            "export-refused",
            "1,234,567 points sent",
            id="millions of points sent",
        ),
        pytest.param(
            _set(answer=_answer(engines=1)), "window-empty", "it has 1 engine", id="one engine"
        ),
        pytest.param(
            _set(), "replica-unscraped", "scraped: vllm-a:8000, vllm-b:8000", id="servers by name"
        ),
        pytest.param(_set(), "old-version", "it is version v2.9.5", id="Parseable's version"),
    ],
)
def test_healthy_checks_are_printed_as_text(
    plant: Callable[[World], None], check: str, says: str
) -> None:
    world = World()
    plant(world)
    assert [f.found for f in world.findings() if f.check == check] == [says]


def test_checking_a_missing_stream_does_not_create_it() -> None:
    world = World()
    world.schema = (404, "Stream not found")
    world.findings()
    assert world.writes == []


def test_a_cost_without_a_price_is_unknown_with_its_reason() -> None:
    [finding] = [f for f in World(answer=_answer()).findings() if f.check == "no-price"]
    assert (finding.state, finding.found) == ("unknown", "cost is unknown: no price given")


def test_no_finding_contains_a_secret() -> None:
    for planted in FAULTS:
        world = World(answer=_answer())
        planted.values[0](world)  # type: ignore[operator]
        result = json.dumps([finding.as_dict() for finding in world.findings()])
        assert READER[1] + '"' not in result
        assert INGEST.split()[1] not in result


def test_without_credentials_the_stream_is_not_checked() -> None:
    with httpx.Client(transport=httpx.MockTransport(World()), trust_env=False) as client:
        evidence = gather(client, CHAIN, clock=lambda: NOW, pause=lambda: None)
    [login] = [f for f in diagnosis(evidence) if f.check == "wrong-password"]
    assert (login.state, "PARSEABLE_USER" in login.found) == ("unknown", True)


def test_a_mistyped_stream_is_not_to_be_created_blindly() -> None:
    """To a reader a stream that is not there and one it must not read look the same."""
    world = World(streams=("vllm_metrics", "vllm_traces"))
    world.schema = (403, "")
    [finding] = [f for f in world.findings() if f.check == "no-right"]
    assert finding.remedy.startswith("Is the name right")
    assert "It may read vllm_metrics, vllm_traces." in finding.remedy
    assert "grants the right and removes none" in finding.remedy


def test_without_a_collector_none_is_mentioned() -> None:
    alone = replace(CHAIN, collector_metrics=None, collector_health=None)
    world = World()
    for part, rows in ((BATCHES, AHEAD), (INSTANCES, NO_B)):
        world.rows[part] = rows
    findings = world.findings(alone, secret=None, config=None)
    others = [finding.as_dict() for finding in findings if finding.check != "clock-skew"]
    assert "Collector" not in json.dumps(others)
    [skew] = [f for f in findings if f.check == "clock-skew"]
    assert (skew.state, "Collector" in skew.found) == ("broken", False)


@pytest.mark.parametrize(
    ("config", "environment", "seconds"),
    [
        pytest.param({}, {}, 15.0, id="no configuration"),
        pytest.param(CONFIG, {}, 15.0, id="the project's own: an export each 10 s"),
        pytest.param(CONFIG, {"VLLM_SCRAPE_INTERVAL": "60s"}, 75.0, id="scraped each minute"),
        pytest.param({"x": [{"flush_timeout": "2m"}]}, {}, 150.0, id="exported each two minutes"),
        pytest.param({"scrape_interval": "${env:X}"}, {}, 15.0, id="a variable that is not set"),
        pytest.param({"scrape_interval": ["soon"], "flush_timeout": 5}, {}, 15.0, id="no duration"),
    ],
)
def test_the_wait_is_longer_than_a_scrape_and_an_export(
    config: dict[str, Any], environment: dict[str, str], seconds: float
) -> None:
    """A shorter one alternates between broken and ok, as an export falls into it or not."""
    assert longest_wait_seconds(config, environment) == seconds


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("service: 5", id="no service"),
        pytest.param("service: {pipelines: {metrics: [a]}}", id="a list for a pipeline"),
        pytest.param(
            "service: {pipelines: {5: {exporters: [otlphttp, 6], processors: [7]}}}\n"
            "exporters: {otlphttp: {headers: [a], sending_queue: 5, retry_on_failure: true}}",
            id="values of other kinds",
        ),
        pytest.param(
            "a: &a [x, x]\n"
            + "".join(
                f"a{i}: &a{i} [{', '.join([f'*a{i - 1}' if i else '*a'] * 9)}]\n" for i in range(40)
            ),
            id="aliases of aliases",
        ),
    ],
)
def test_a_configuration_of_another_shape_causes_no_crash(text: str) -> None:
    world = World(config=yaml.safe_load(text))
    assert first_broken(world.findings()) is None or world.findings()[0]
    assert longest_wait_seconds(world.config or {}, {}) == 15.0


@pytest.mark.parametrize(
    "secret",
    [
        pytest.param(INGEST + "\r", id="a carriage return"),
        pytest.param(INGEST + "\nX: y", id="a second header"),
        pytest.param(INGEST + "\N{LATIN SMALL LETTER E WITH ACUTE}", id="no ASCII"),
    ],
)
def test_a_secret_that_cannot_be_sent_is_not_shown(secret: str) -> None:
    findings = World(secret=secret).findings()
    [finding] = [f for f in findings if f.check == "ingest-password"]
    assert finding.state == "broken"
    assert INGEST not in json.dumps([f.as_dict() for f in findings])


def test_an_odd_date_is_no_time() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, headers={"Date": "garbage"}, text="[" * 100_000)

    with httpx.Client(transport=httpx.MockTransport(answer), trust_env=False) as client:
        reply = ask(client, "GET", "http://x.test")
    assert (reply.is_ok, reply.server_time, reply.body(list)) == (True, None, None)


def test_an_empty_chain_has_no_findings() -> None:
    with httpx.Client(transport=httpx.MockTransport(World()), trust_env=False) as client:
        assert diagnosis(gather(client, Chain(), clock=lambda: NOW, pause=lambda: None)) == []


@pytest.mark.parametrize(
    ("target", "scraped"),
    [
        pytest.param("http://127.0.0.1:8000/metrics", "127.0.0.1:8000", id="the same name"),
        pytest.param(
            "http://127.0.0.1:8000/metrics", "host.docker.internal:8000", id="the host, from within"
        ),
        pytest.param("http://localhost:8000/metrics", "127.0.0.1:8000", id="two names of loopback"),
    ],
)
def test_a_replica_is_recognized_under_another_name_of_this_machine(
    target: str, scraped: str
) -> None:
    world = World()
    world.rows[INSTANCES] = [{"instance": scraped, "tried": _ts(6), "scraped": _ts(6)}]
    chain = replace(CHAIN, vllm=(target,), proxy=None)

    def route(request: httpx.Request) -> httpx.Response:
        if request.url.host in ("127.0.0.1", "localhost"):
            return httpx.Response(200, text=SCRAPE)
        return world(request)

    with httpx.Client(transport=httpx.MockTransport(route), trust_env=False) as client:
        evidence = gather(
            client,
            chain,
            clock=lambda: NOW,
            pause=lambda: None,
            reader=httpx.BasicAuth(*READER),
        )
    assert first_broken(diagnosis(evidence)) is None
