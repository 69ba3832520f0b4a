"""`stack init` and `stack provision` against the recorded answers of a real Parseable."""

from __future__ import annotations

import stat
from pathlib import Path

import httpx
import pytest
from recorded_parseable import ROOT, RecordedParseable

from vllm_capacity.alerts import RULES, with_thresholds
from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.live.access import read_settings
from vllm_capacity.live.provision import (
    DashboardPanel,
    alert_body,
    dashboard_body,
    provision_alerts,
    provision_dashboard,
)
from vllm_capacity.live.stack import (
    INGEST_SECRET,
    READER_PROFILE,
    READER_SECRET,
    Management,
    Names,
    basic_authorization,
    initialise,
    write_secret,
)

PANELS = [
    DashboardPanel("Requests per minute", "timeseries", "select 1 from x"),
    DashboardPanel("KV", "line", "s"),
]


@pytest.fixture
def server() -> RecordedParseable:
    return RecordedParseable()


def test_init_makes_streams_roles_users_and_secrets(
    server: RecordedParseable, tmp_path: Path
) -> None:
    with server.client() as client:
        done = initialise(client, Names(), tmp_path / "secrets", retention_days=30)
    assert server.streams == {"vllm_metrics": "otel-metrics", "vllm_traces": "otel-traces"}
    assert server.roles["vllm_ingestor"] == [
        {"privilege": "ingestor", "resource": {"stream": "vllm_metrics"}},
        {"privilege": "ingestor", "resource": {"stream": "vllm_traces"}},
    ]
    assert {name: privilege for name, (_, privilege) in server.users.items()} == {
        "collector": "ingestor",
        "planner": "reader",
    }
    assert done[-2:] == [
        "checked: collector can write and cannot read",
        "checked: planner cannot write and can read",
    ]


def test_secrets_are_what_the_collector_and_the_reader_need(
    server: RecordedParseable, tmp_path: Path
) -> None:
    with server.client() as client:
        initialise(client, Names(), tmp_path / "secrets")
    password = server.users["collector"][0]
    header = (tmp_path / "secrets" / INGEST_SECRET).read_text()
    assert header == basic_authorization("collector", password)  # no newline: it would be sent
    assert (tmp_path / "secrets" / READER_SECRET).read_text() == server.users["planner"][0]


def test_the_profile_is_one_that_pull_reads(server: RecordedParseable, tmp_path: Path) -> None:
    with server.client() as client:
        initialise(client, Names(), tmp_path)
    assert read_settings({}, tmp_path / READER_PROFILE) == {
        "url": "http://parseable.test",
        "user": "planner",
        "password": server.users["planner"][0],
    }


def test_only_the_owner_can_read_a_secret(server: RecordedParseable, tmp_path: Path) -> None:
    with server.client() as client:
        initialise(client, Names(), tmp_path / "secrets")
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "secrets").iterdir()}
    assert modes == dict.fromkeys((INGEST_SECRET, READER_SECRET, READER_PROFILE), 0o600)
    assert stat.S_IMODE((tmp_path / "secrets").stat().st_mode) == 0o700


def test_no_secret_is_shown(server: RecordedParseable, tmp_path: Path) -> None:
    with server.client() as client:
        done = initialise(client, Names(), tmp_path)
    result = "\n".join(done)
    secrets = [password for password, _ in server.users.values()]
    secrets += [(tmp_path / INGEST_SECRET).read_text().split()[1], ROOT[1]]
    assert [secret for secret in secrets if secret in result] == []


def test_a_second_init_changes_nothing(server: RecordedParseable, tmp_path: Path) -> None:
    with server.client() as client:
        initialise(client, Names(), tmp_path)
        before = {p.name: p.read_text() for p in tmp_path.iterdir()}
        server.calls.clear()
        initialise(client, Names(), tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == before
    assert {method for method, path in server.writes if "/role/" not in path} == set()


def test_a_lost_secret_stops_init_before_it_changes_anything(
    server: RecordedParseable, tmp_path: Path
) -> None:
    with server.client() as client:
        initialise(client, Names(), tmp_path)
        (tmp_path / READER_SECRET).unlink()
        server.calls.clear()
        with pytest.raises(InputError, match=r"'planner'.*--renew"):
            initialise(client, Names(), tmp_path)
    assert server.writes == []


def test_renew_gives_new_passwords(server: RecordedParseable, tmp_path: Path) -> None:
    with server.client() as client:
        initialise(client, Names(), tmp_path)
        before = {p.name: p.read_text() for p in tmp_path.iterdir()}
        initialise(client, Names(), tmp_path, renew=True)
    after = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert all(after[name] != before[name] for name in before)


def test_a_secret_that_is_not_the_password_is_found(
    server: RecordedParseable, tmp_path: Path
) -> None:
    with server.client() as client:
        initialise(client, Names(), tmp_path)
        write_secret(tmp_path / READER_SECRET, "not-it")
        with pytest.raises(SourceError, match=r"planner cannot write.*cannot read.*--renew"):
            initialise(client, Names(), tmp_path)


def test_a_secret_with_a_trailing_newline_is_found(
    server: RecordedParseable, tmp_path: Path
) -> None:
    with server.client() as client:
        initialise(client, Names(), tmp_path)
        with (tmp_path / INGEST_SECRET).open("a") as file:
            file.write("\n")
        with pytest.raises(InputError, match="starts or ends with a newline or space"):
            initialise(client, Names(), tmp_path)


def test_a_stream_of_another_kind_is_refused(server: RecordedParseable, tmp_path: Path) -> None:
    server.streams["vllm_metrics"] = "otel-logs"
    with (
        server.client() as client,
        pytest.raises(InputError, match="has otel-logs, not otel-metrics"),
    ):
        initialise(client, Names(), tmp_path)


def test_a_wrong_root_password_is_reported(server: RecordedParseable, tmp_path: Path) -> None:
    with (
        server.client(("root-of-tests", "wrong")) as client,
        pytest.raises(SourceError, match=r"403.*PARSEABLE_ROOT_PASSWORD"),
    ):
        initialise(client, Names(), tmp_path)


def test_a_missing_server_is_reported() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused", request=request)

    transport = httpx.MockTransport(refuse)
    with (
        httpx.Client(base_url="http://parseable.test", transport=transport) as client,
        pytest.raises(SourceError, match=r"no answer from http://parseable.test.*PARSEABLE_URL"),
    ):
        Management(client).streams()


def test_rules_on_a_stream_without_telemetry_are_refused_with_what_to_do() -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json=[])
        text = "Error: Failed to parse query: Schema error: No field named metric_name."
        return httpx.Response(400, text=text)  # a 2.9.5's answer

    transport = httpx.MockTransport(refuse)
    with (
        httpx.Client(base_url="http://parseable.test", transport=transport) as client,
        pytest.raises(SourceError, match="no columns until telemetry has arrived"),
    ):
        provision_alerts(Management(client), "vllm_metrics")


def test_three_alerts_are_parseables_and_three_are_ours(server: RecordedParseable) -> None:
    with server.client() as client:
        lines = provision_alerts(Management(client), "vllm_metrics")
    assert lines == [
        "alert p99 E2E latency: not in Parseable (a percentile of a histogram);"
        " `vllm-capacity alerts` evaluates it",
        "alert p95 TTFT: not in Parseable (a percentile of a histogram);"
        " `vllm-capacity alerts` evaluates it",
        "alert vLLM mean KV cache usage (vllm_metrics): created",
        "alert vLLM mean requests waiting (vllm_metrics): created",
        "alert failed requests: not in Parseable (the increase of a counter);"
        " `vllm-capacity alerts` evaluates it",
        "alert vLLM no data (vllm_metrics): created",
    ]


def test_alerts_are_not_posted_twice(server: RecordedParseable) -> None:
    with server.client() as client:
        provision_alerts(Management(client), "vllm_metrics")
        server.calls.clear()
        lines = provision_alerts(Management(client), "vllm_metrics")
    assert server.writes == []
    assert sum(line.endswith("exists already") for line in lines) == 3


def test_a_changed_threshold_is_updated_and_targets_stay(
    server: RecordedParseable,
) -> None:
    with server.client() as client:
        provision_alerts(Management(client), "vllm_metrics")
        for alert in server.alerts:
            alert["targets"] = ["01TARGET"]
        provision_alerts(Management(client), "vllm_metrics", with_thresholds({"waiting": 9.0}))
    [waiting] = [alert for alert in server.alerts if "waiting" in alert["title"]]
    assert (waiting["thresholdConfig"]["value"], waiting["targets"]) == (9.0, ["01TARGET"])
    assert len(server.alerts) == 3


def test_duplicate_alerts_are_reported(server: RecordedParseable) -> None:
    body = alert_body(RULES[3], "vllm_metrics")
    with server.client() as client:
        for _ in range(2):
            client.post("/api/v1/alerts", json=body)
        lines = provision_alerts(Management(client), "vllm_metrics")
    assert any("2 alerts have this title, the oldest is used" in line for line in lines)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_an_alert_has_one_aggregate_that_parseable_evaluates(rule: object) -> None:
    body = alert_body(rule, 'a"stream')  # type: ignore[arg-type]
    if body is None:
        return
    assert body["query"].split("(")[0] in ("select avg", "select count")
    assert body["query"].count("(") == 2
    assert 'from "a""stream" where' in body["query"]


def test_the_body_is_the_one_that_the_real_server_took(server: RecordedParseable) -> None:
    [taken, *_] = [
        e for e in server.exchanges if (e["method"], e["path"]) == ("POST", "/api/v1/alerts")
    ]
    body = alert_body(RULES[3], "vllm_metrics")
    assert body is not None
    assert set(body) == set(httpx.Response(200, content=taken["request"]).json())


def test_the_dashboard_is_posted_once(server: RecordedParseable) -> None:
    with server.client() as client:
        lines = [provision_dashboard(Management(client), PANELS, "vllm_metrics") for _ in range(2)]
    assert lines == [
        "dashboard vLLM capacity (vllm_metrics): created, 2 panels",
        "dashboard vLLM capacity (vllm_metrics): exists already",
    ]
    assert len(server.dashboards) == 1


def test_a_changed_panel_is_updated(server: RecordedParseable) -> None:
    with server.client() as client:
        provision_dashboard(Management(client), PANELS, "vllm_metrics")
        line = provision_dashboard(Management(client), PANELS[:1], "vllm_metrics")
    assert line.endswith("updated")
    assert len(server.dashboards[0]["tiles"]) == 1


def test_tile_ids_are_valid_different_and_the_same_in_every_run() -> None:
    ids = [tile["tile_id"] for tile in dashboard_body(PANELS, "s")["tiles"]]
    assert ids == [tile["tile_id"] for tile in dashboard_body(PANELS, "s")["tiles"]]
    assert len(set(ids)) == 2
    assert all(len(i) == 26 and i[0] in "01234567" and not set(i) & set("ILOU") for i in ids)
