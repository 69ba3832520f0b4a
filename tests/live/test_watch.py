"""`watch`: the last scrapes, who does not answer and why, the order; a running scrape is read."""

import json
import re
import subprocess
import sys
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event

import httpx
import pytest
from click.testing import CliRunner
from serving import serving

import vllm_capacity as vc
from tests.integration.real_prometheus import free_port, wait_until
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, pricing
from vllm_capacity.cli import cli
from vllm_capacity.cli.watch import ORDERS as CLIENTS_OFFERED
from vllm_capacity.engines_now import ORDERS, engines_now
from vllm_capacity.errors import InputError, SourceError, WindowError
from vllm_capacity.live.access import cause
from vllm_capacity.live.running import Follower, open_recorded
from vllm_capacity.live.scrape import NO_SERIES, Journal, run
from vllm_capacity.live.targets import targets
from vllm_capacity.live.watch import FromPrometheus, Recent, silence
from vllm_capacity.record import plain
from vllm_capacity.render.watch import watch_text
from vllm_capacity.sources.exposition import Scrape
from vllm_capacity.sources.prometheus import Prometheus
from vllm_capacity.telemetry.window import open_window

REFUSED = "127.0.0.1:9"
T0 = 1_795_000_000.0


def metrics(tokens, *, running=2, waiting=0):
    return (
        "# TYPE vllm:generation_tokens_total counter\n"
        f'vllm:generation_tokens_total{{engine="0",model_name="m"}} {tokens}\n'
        "# TYPE vllm:num_requests_running gauge\n"
        f'vllm:num_requests_running{{engine="0",model_name="m"}} {running}\n'
        "# TYPE vllm:num_requests_waiting gauge\n"
        f'vllm:num_requests_waiting{{engine="0",model_name="m"}} {waiting}\n'
    )


def scraped(recent, target, seconds, *, rate=10, **gauges):
    for second in range(seconds):
        text = metrics(rate * second, **gauges)
        recent.append((Scrape(T0 + second, target, 200, text), ""))


@pytest.fixture(scope="module")
def replicas():
    priced = Assumptions(pricing(1.64))
    return Analysis.of(open_window("vllm-two-replicas"), assumptions=priced)


# --- what is scraped ----------------------------------------------------------------------------


def test_the_last_scrapes_are_an_analysis():
    recent = Recent(300, 1)
    scraped(recent, "a:1", 31)
    with recent.analysis(Assumptions(pricing(3.6))) as analysis:
        found = engines_now(analysis)
    (row,) = found.engines
    assert (row.engine, row.running, row.waiting) == ("a:1/0", 2.0, 0.0)
    assert row.output_tokens_per_second == pytest.approx(10.0)
    assert row.usd_per_million_output_tokens.mid == pytest.approx(1e6 * 3.6 / 3600 / 10)


def test_old_scrapes_are_dropped():
    recent = Recent(10, 1)
    scraped(recent, "a:1", 60)
    with recent.analysis(Assumptions()) as analysis:
        assert analysis.time_range.seconds == pytest.approx(10, abs=0.1)


def test_one_scrape_is_no_rate():
    recent = Recent(10, 1)
    scraped(recent, "a:1", 1)
    with recent.analysis(Assumptions()) as analysis:
        assert analysis is None


def test_scrapes_are_kept_only_where_they_are_to_be(tmp_path):
    scraped(Recent(10, 1, Journal(tmp_path / "kept.jsonl.gz")), "a:1", 3)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.jsonl.gz"]
    words = ["scrape", "--from", tmp_path / "kept.jsonl.gz", "--to", tmp_path / "w"]
    done = CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    assert (done.exit_code, (tmp_path / "w" / "window.json").is_file()) == (0, True)


# --- servers that do not answer -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "reported"),
    [
        pytest.param(
            "ConnectError: [Errno 111] Connection refused", "connection refused;", id="port"
        ),
        pytest.param(
            "ConnectError: [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed",
            "TLS: its certificate",
            id="a certificate of its own",
        ),
        pytest.param("ConnectError: [SSL: WRONG_VERSION_NUMBER]", "TLS: no TLS", id="plain http"),
        pytest.param("HTTP 404", "HTTP 404; is this its /metrics?", id="another path"),
        pytest.param("ConnectTimeout: timed out", "no answer in time", id="a firewall"),
        pytest.param("HTTP 503", "HTTP 503", id="another error, as it is"),
    ],
)
def test_a_cause_in_plain_words(error, reported):
    assert cause(error).startswith(reported)


class Other(BaseHTTPRequestHandler):
    """A server that is none of vLLM's: /metrics without its series, and nothing else."""

    def do_GET(self):
        is_there = self.path == "/metrics"
        body = b"# TYPE up gauge\nup 1\n" if is_there else b""
        self.send_response(200 if is_there else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_run_reports_silent_targets_at_once(tmp_path):
    reported = []
    with (
        serving(ThreadingHTTPServer(("127.0.0.1", 0), Other)) as url,
        httpx.Client(verify=False) as session,
    ):
        done = run(
            targets((url, f"{url.replace('127.0.0.1', 'localhost')}/other", REFUSED)),
            client=session,
            journal=Journal(tmp_path / "j"),
            every_seconds=0.5,  # each scrape has as long to answer
            for_seconds=0.8,
            stop=Event(),
            on_progress=reported.append,
        )
    assert sorted(map(cause, done.silent.values())) == sorted(
        [cause("Connection refused"), cause("HTTP 404"), NO_SERIES]
    )
    assert len(reported[-1].silent) == 3


def test_watching_nobody_ends_with_the_cause():
    with pytest.raises(SourceError, match=f"{REFUSED}: connection refused"):
        CliRunner().invoke(cli, ["watch", REFUSED, "--once"], catch_exceptions=False)


def test_another_server_is_noted():
    recent = Recent(10, 2)
    recent.append((Scrape(T0, "b:1", 200, "up 1\n"), ""), (Scrape(T0, "a:1", 0, ""), "HTTP 404"))
    assert recent.is_hopeless
    assert silence(recent.silent) == f"a:1: HTTP 404; is this its /metrics?; b:1: {NO_SERIES}"


# --- the screen ---------------------------------------------------------------------------------


def test_the_command_offers_the_orders_there_are():
    assert list(CLIENTS_OFFERED) == list(ORDERS)


@pytest.mark.parametrize("order", ORDERS)
def test_engines_come_in_the_order_asked_for(replicas, order):
    found = engines_now(replicas, order=order)
    assert sorted(row.engine for row in found.engines) == ["r0/0", "r1/0"]
    if order == "tokens":
        rates = [row.output_tokens_per_second for row in found.engines]
        assert rates == sorted(rates, reverse=True)


def test_silent_servers_come_first_and_make_the_total_a_bound(replicas):
    found = engines_now(replicas, silent={"gone:8000": "connection refused"})
    assert found.engines[0].engine == "gone:8000"
    assert (found.whole.usd_per_hour.low, found.whole.usd_per_hour.mid) == (3.28, None)


def test_the_total_is_that_of_the_answer(replicas):
    whole, answer = engines_now(replicas).whole, replicas.answer
    assert whole.usd_per_million_output_tokens == answer.cost.usd_per_million_output_tokens
    assert whole.headroom_ratio == answer.saturation.headroom_ratio


def test_the_screen(replicas):
    text = watch_text(engines_now(replicas, silent={"gone:8000": "HTTP 404"}), width=120)
    lines = text.split("\n")
    heads = "engine state tok/s run wait KV TTFT p95 ITL p95 $/h $/M out headroom"
    assert " ".join(lines[2].split()) == heads
    assert lines[4].startswith("gone:8000  NO ANSWER")
    assert "≥ $3.28" in text
    assert lines[-2] == "gone:8000: HTTP 404"


def test_an_unknown_sort_order(replicas):
    with pytest.raises(InputError, match="try worst, name"):
        engines_now(replicas, order="color")


def test_json_has_the_rows(replicas):
    found = json.loads(json.dumps(plain(engines_now(replicas)), allow_nan=False))
    assert {row["engine"] for row in found["engines"]} == {"r0/0", "r1/0"}
    assert found["whole"]["usd_per_hour"]["mid"] == 3.28


# --- a running scrape ---------------------------------------------------------------------------


def test_a_running_scrape_can_be_read(tmp_path):
    scraped(Recent(60, 1, Journal(tmp_path / "monday.journal")), "a:1", 20)
    for name in ("monday", "monday.journal"):
        found = vc.open(tmp_path / name)
        assert (found.name, found.analyze().answer.tokens.generation) == ("monday", 190)
    assert [path.name for path in tmp_path.iterdir()] == ["monday.journal"]


def test_a_finished_window_opens_as_usual(tmp_path):
    scraped(Recent(60, 1, Journal(tmp_path / "left.journal")), "a:1", 20)
    assert open_recorded("vllm-sweep").name == "vllm-sweep"
    with pytest.raises(WindowError):
        open_recorded(tmp_path / "nowhere")


def test_a_journal_is_followed_as_it_grows(tmp_path):
    journal = tmp_path / "monday.journal"
    kept, follower = Journal(journal), Follower(journal)
    scraped(Recent(60, 1, kept), "a:1", 3)
    assert [scrape.t_unix_seconds - T0 for scrape in follower.new()] == [0, 1, 2]
    assert list(follower.new()) == []
    kept.append((Scrape(T0 + 3, "a:1", 0, ""), "HTTP 503"))
    with journal.open("ab") as file:
        file.write(b"\x1f\x8b\x08\x00")  # the next scrape, only half written
    assert [(scrape.status, scrape.error) for scrape in follower.new()] == [(0, "HTTP 503")]
    assert not follower.has_ended
    journal.unlink()
    assert (list(follower.new()), follower.has_ended) == ([], True)


def test_a_running_scrape_can_be_watched(tmp_path):
    scraped(Recent(60, 1, Journal(tmp_path / "monday.journal")), "a:1", 20)
    words = ["watch", str(tmp_path / "monday"), "--once", "--json"]
    found = json.loads(CliRunner().invoke(cli, words, catch_exceptions=False).stdout)
    assert [row["engine"] for row in found["engines"]] == ["a:1/0"]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param(
            httpx.Response(200, json={"status": "success", "data": []}),
            "no vLLM series in the last 60 s",
            id="a Prometheus of others",
        ),
        pytest.param(httpx.Response(401), "refused the credentials", id="credentials are wanted"),
    ],
)
def test_an_empty_prometheus_gives_a_reason(answer, says):
    transport = httpx.MockTransport(lambda request: answer)
    with httpx.Client(base_url="http://prometheus", transport=transport) as client:
        looked_at = FromPrometheus(Prometheus(client, pause=lambda seconds: None), 60)
        with looked_at.analysis(Assumptions()) as found:
            assert found is None
    assert looked_at.is_hopeless
    assert says in silence(looked_at.silent)


def test_labels_of_targets_price_them_and_are_kept(tmp_path):
    listed, prices = tmp_path / "targets.yaml", tmp_path / "prices.yaml"
    prices.write_text(
        "- {match: '{team=\"chat\"}', usd_per_hour: 3}\n"
        "- {match: '{team=\"search\"}', usd_per_hour: 1}\n"
    )
    with (
        serving(ThreadingHTTPServer(("127.0.0.1", 0), Counting)) as one,
        serving(ThreadingHTTPServer(("127.0.0.1", 0), Counting)) as two,
    ):
        listed.write_text(f"- targets: ['{two}']\n  labels: {{team: chat}}\n")
        words = ["watch", one, "--label", "team=search", "--targets", listed, "--fleet", prices]
        rest = ["--once", "--json", "--every", "500ms", "--to", tmp_path / "kept.jsonl.gz"]
        done = CliRunner().invoke(cli, list(map(str, [*words, *rest])), catch_exceptions=False)
    found = json.loads(done.stdout)
    assert sorted(row["usd_per_hour"]["mid"] for row in found["engines"]) == [1.0, 3.0]
    words = ["scrape", "--from", tmp_path / "kept.jsonl.gz", "--to", tmp_path / "w"]
    CliRunner().invoke(cli, list(map(str, words)), catch_exceptions=False)
    assert sorted(vc.open(tmp_path / "w").analyze(price=1.0).bill_by("team").parts) == [
        "chat",
        "search",
    ]


def test_labels_are_of_targets_that_are_scraped(tmp_path):
    scraped(Recent(60, 1, Journal(tmp_path / "monday.journal")), "a:1", 3)
    words = ["watch", str(tmp_path / "monday"), "--label", "team=search"]
    with pytest.raises(InputError, match="a scrape that is running has its own labels"):
        CliRunner().invoke(cli, words, catch_exceptions=False)


def test_nothing_to_watch_is_reported():
    with pytest.raises(InputError, match="Give something to watch"):
        CliRunner().invoke(cli, ["watch", "--once"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        pytest.param(["--match", '{a="b"}'], "--match is for a Prometheus", id="of a server"),
        pytest.param(["--label", "team"], "write NAME=VALUE", id="a label without a value"),
        pytest.param(["--targets", "nowhere.yml"], "There is no file nowhere.yml", id="no file"),
        pytest.param(["--sort", "fame"], "fame", id="an order that there is not"),
    ],
)
def test_what_cannot_be_watched_is_reported(words, says):
    done = CliRunner().invoke(cli, ["watch", "gpu-1:8000", *words])
    assert says in str(done.exception) + done.output


def test_a_prometheus_can_scrape_the_figures(tmp_path):
    url = f"http://127.0.0.1:{free_port()}/metrics"
    server = ThreadingHTTPServer(("127.0.0.1", 0), Counting)
    with serving(server) as vllm:
        words = [vllm, "--every", "200ms", "--refresh", "100ms", "--usd-per-hour", "2"]
        command = [sys.executable, "-m", "vllm_capacity", "watch", *words, "--listen"]
        with subprocess.Popen([*command, url.split("/")[2]], stderr=subprocess.PIPE) as process:
            try:
                wait_until(lambda: "end=" in told_at(url), seconds=60)
                text = told_at(url)
            finally:
                process.terminate()
                said = process.communicate(timeout=30)[1].decode()
    assert "serves the figures" in said
    assert "vllm_capacity_has_telemetry 1.0" in text
    assert re.search(r'vllm_capacity_cost_per_million_tokens\{.*end="value".*tokens="output"', text)
    assert process.returncode == 0


def told_at(url):
    """What it answers; empty where it does not."""
    with suppress(httpx.HTTPError):
        return httpx.get(url, timeout=5).text
    return ""


class Counting(BaseHTTPRequestHandler):
    """A vLLM that writes tokens by the clock."""

    def do_GET(self):
        body = metrics(1000 * time.monotonic()).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        return


@pytest.mark.parametrize("listen", ["9900", "127.0.0.1:x", "127.0.0.1:99999"])
def test_an_unusable_listen_address_is_reported(listen):
    done = CliRunner().invoke(cli, ["watch", REFUSED, "--listen", listen])
    assert "give HOST:PORT" in str(done.exception)
