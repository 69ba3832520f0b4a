"""The verbs `proxy`, `doctor`, `alerts` and `stack` as a person or a container calls them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from subprocess import CompletedProcess

import httpx
import pytest
from recorded_parseable import ROOT, RecordedParseable
from serving import serving

from vllm_capacity.live.stack import INGEST_SECRET, READER_SECRET

COMMAND = [sys.executable, "-c", "from vllm_capacity.cli import main; main()"]
REPOSITORY = Path(__file__).parents[2]
Run = Callable[..., CompletedProcess[str]]


@pytest.fixture
def run(command: Run) -> Run:
    """A command line that finds nothing in its environment but what a test gives it."""
    return partial(command, environment={})


@contextmanager
def parseable(recorded: RecordedParseable) -> Iterator[str]:
    """The recorded answers behind a real socket."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self) -> None:
            self.close_connection = True
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            request = httpx.Request(
                self.command, f"http://here{self.path}", headers=dict(self.headers), content=body
            )
            if self.path == "/api/v1/liveness":
                answer = httpx.Response(200)
            elif "Authorization" not in self.headers:
                answer = httpx.Response(401)
            else:
                answer = recorded(request)
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(answer.content)

        do_GET = do_POST = do_PUT = respond  # noqa: N815

        def log_message(self, *_: object) -> None:
            return

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url


def _env_file(folder: Path) -> None:
    text = f"PARSEABLE_ROOT_USER={ROOT[0]}\nPARSEABLE_ROOT_PASSWORD='{ROOT[1]}'\n"
    (folder / ".env").write_text(text)
    (folder / ".env").chmod(0o600)


def test_stack_init_writes_secrets_and_shows_none(tmp_path: Path, run: Run) -> None:
    recorded = RecordedParseable()
    _env_file(tmp_path)
    with parseable(recorded) as url:
        outcome = run("stack", "init", "--parseable", url, cwd=tmp_path)
    assert (outcome.returncode, outcome.stderr) == (0, "")
    passwords = [password for password, _ in recorded.users.values()]
    assert len(passwords) == 2
    assert [p for p in (*passwords, ROOT[1]) if p in outcome.stdout] == []
    assert {path.name for path in (tmp_path / "secrets").iterdir()} >= {
        INGEST_SECRET,
        READER_SECRET,
    }


def test_stack_init_requires_an_administrator(tmp_path: Path, run: Run) -> None:
    outcome = run("stack", "init", cwd=tmp_path)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith("vllm-capacity: Set PARSEABLE_ROOT_USER and")
    assert outcome.stderr.count("\n") == 1


def test_stack_init_refuses_the_default_password(tmp_path: Path, run: Run) -> None:
    root = {"PARSEABLE_ROOT_USER": "admin", "PARSEABLE_ROOT_PASSWORD": "admin"}
    outcome = run("stack", "init", cwd=tmp_path, environment=root)
    assert (outcome.returncode, "default password" in outcome.stderr) == (2, True)


def test_stack_provision_says_what_parseable_cannot_evaluate(tmp_path: Path, run: Run) -> None:
    recorded = RecordedParseable()
    _env_file(tmp_path)
    with parseable(recorded) as url:
        outcomes = [run("stack", "provision", "--parseable", url, cwd=tmp_path) for _ in range(2)]
    assert [o.returncode for o in outcomes] == [0, 0], outcomes[0].stderr
    assert outcomes[0].stdout.count("`vllm-capacity alerts` evaluates it") == 3
    assert len(recorded.alerts) == 3
    assert len(recorded.dashboards[0]["tiles"]) == 8


def test_doctor_names_the_first_broken_link(tmp_path: Path, run: Run) -> None:
    recorded = RecordedParseable()
    with parseable(recorded) as url:
        outcome = run(
            *("doctor", "--vllm", "127.0.0.1:1", "--collector", "none", "--parseable", url),
            cwd=tmp_path,
        )
    assert outcome.returncode == 1
    assert "First broken link: vLLM (no-metrics)" in outcome.stdout
    assert "remedy: Is `vllm serve` running" in outcome.stdout


def test_doctor_uses_the_secrets_that_init_wrote(tmp_path: Path, run: Run) -> None:
    recorded = RecordedParseable()
    _env_file(tmp_path)
    with parseable(recorded) as url:
        run("stack", "init", "--parseable", url, cwd=tmp_path)
        arguments = ("doctor", "--vllm", "none", "--collector", "none", "--json")
        findings = json.loads(run(*arguments, cwd=tmp_path).stdout)
        recorded.users["planner"] = ("another", "reader")
        after = json.loads(run(*arguments, cwd=tmp_path).stdout)
    assert [f["state"] for f in findings if f["check"] == "wrong-password"] == ["ok"]
    assert [f["state"] for f in after if f["check"] == "wrong-password"] == ["broken"]


@pytest.mark.parametrize(
    ("scheme", "page"),
    [
        ("", ""),
        ("", "/metrics"),
        ("http://", "/"),
        ("http://", "/health"),
        ("http://", "/proxy/metrics"),
    ],
)
def test_doctor_asks_the_proxy_for_its_health_whichever_page_was_named(
    tmp_path: Path, scheme: str, page: str, run: Run
) -> None:
    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Health)) as url:
        proxy = f"{scheme}{url.removeprefix('http://')}{page}"
        nobody = ("--vllm", "none", "--collector", "none", "--parseable", "none")
        outcome = run("doctor", *nobody, "--proxy", proxy, "--json", cwd=tmp_path)
    assert [f["state"] for f in json.loads(outcome.stdout)] == ["ok"], outcome.stderr


def test_stack_init_refuses_an_env_file_that_others_can_read(tmp_path: Path, run: Run) -> None:
    _env_file(tmp_path)
    (tmp_path / ".env").chmod(0o644)
    outcome = run("stack", "init", cwd=tmp_path)
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert "others can read it (mode 0644): chmod 600 it" in outcome.stderr


def test_renewed_passwords_come_with_who_must_read_them(tmp_path: Path, run: Run) -> None:
    _env_file(tmp_path)
    with parseable(RecordedParseable()) as url:
        run("stack", "init", "--parseable", url, cwd=tmp_path)
        outcome = run("stack", "init", "--renew", "--parseable", url, cwd=tmp_path)
    assert outcome.returncode == 0, outcome.stderr
    assert "The Collector reads secrets/ingest_authorization only when it starts" in outcome.stdout
    assert "The reporter reads secrets/reader_password before each pull" in outcome.stdout
    assert outcome.stdout.endswith("stream vllm_metrics: nothing was being written to it\n")


def test_a_right_is_revoked_only_by_name(tmp_path: Path, run: Run) -> None:
    recorded = RecordedParseable()
    _env_file(tmp_path)
    with parseable(recorded) as url:
        words = ("stack", "init", "--parseable", url)
        for more in ((), ("--stream", "other"), ("--revoke", "other")):
            assert run(*words, *more, cwd=tmp_path).returncode == 0
            streams = [r["resource"]["stream"] for r in recorded.roles["vllm_ingestor"]]
            assert {"vllm_metrics", "vllm_traces"} <= set(streams)
            assert ("other" in streams) is (more == ("--stream", "other"))


@pytest.mark.parametrize(
    ("is_there", "code"),
    [pytest.param(True, 0, id="all well"), pytest.param(False, 1, id="one not")],
)
def test_stack_healthy_is_a_health_check(
    tmp_path: Path, is_there: bool, code: int, run: Run
) -> None:
    with parseable(RecordedParseable()) as url:
        urls = [f"{url}/api/v1/liveness", *([] if is_there else ["http://127.0.0.1:1/"])]
        assert run("stack", "healthy", *urls, cwd=tmp_path).returncode == code


def test_stack_writable_names_a_folder_that_is_not(tmp_path: Path, run: Run) -> None:
    fine = run("stack", "writable", tmp_path, cwd=tmp_path)
    missing = run("stack", "writable", tmp_path / "missing", cwd=tmp_path)
    assert (fine.returncode, missing.returncode) == (0, 2)
    assert f"{tmp_path / 'missing'} cannot be written to" in missing.stderr


@pytest.mark.parametrize(
    ("options", "code", "fired"),
    [
        pytest.param(["--over", "all"], 1, ["e2e-p99", "ttft-p95"], id="the sweep was overloaded"),
        pytest.param(["--over", "30s"], 0, [], id="its end is idle"),
        pytest.param(
            ["--over", "all", "--above", "e2e-p99=1000", "--above", "ttft-p95=1000"],
            0,
            [],
            id="with other thresholds",
        ),
    ],
)
def test_alerts_end_with_1_when_one_fires(
    options: list[str], code: int, fired: list[str], run: Run
) -> None:
    outcome = run("alerts", "--window", "vllm-sweep", "--json", *options, cwd=REPOSITORY)
    found = json.loads(outcome.stdout)
    assert [alert["alert"] for alert in found if alert["state"] == "fired"] == fired
    assert outcome.returncode == code, outcome.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        pytest.param(["--above", "waiting=many"], "Cannot read --above", id="a number"),
        pytest.param(["--above", "nope=1"], "No alert is called 'nope'", id="no such alert"),
        pytest.param(["--over", "soon"], "Cannot read 'soon' as a duration", id="no duration"),
    ],
)
def test_errors_of_alerts_are_one_line(options: list[str], complaint: str, run: Run) -> None:
    outcome = run("alerts", "--window", "vllm-sweep", *options, cwd=REPOSITORY)
    assert (outcome.returncode, complaint in outcome.stderr) == (2, True)
    assert outcome.stderr.count("\n") == 1


@contextmanager
def proxy_process(upstream: str, cwd: Path) -> Iterator[tuple[str, int]]:
    process = subprocess.Popen(
        [*COMMAND, "proxy", "--listen", "127.0.0.1:0", "--timeout", "60"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "VLLM_METRICS_URL": upstream},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        output = process.stderr.readline()
        found = re.match(r"(http://[\d.]+:\d+)/metrics serves ", output)
        assert found, output
        yield found[1], process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
        assert (process.returncode, rest) == (0, "stopped\n")


def _peak_megabytes(pid: int) -> float:
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found
    return int(found[1]) / 1024


def test_the_proxys_memory_does_not_grow_with_bodies_and_clients(tmp_path: Path) -> None:
    line = b'vllm:request_success_total{finished_reason="stop",model_name="some:model"} 1234567.0\n'

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.close_connection = True
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            piece = line * 900
            for _ in range(5_000_000 // len(piece) + 1):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

        def log_message(self, *_: object) -> None:
            return

    def size(url: str) -> int:
        with httpx.stream("GET", f"{url}/metrics", timeout=120) as answer:
            return sum(map(len, answer.iter_bytes()))

    with (
        serving(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as upstream,
        proxy_process(f"{upstream}/metrics", tmp_path) as (url, pid),
        ThreadPoolExecutor(20) as pool,
    ):
        alone = size(url)
        before = _peak_megabytes(pid)
        assert set(pool.map(size, [url] * 20)) == {alone}
        grown = _peak_megabytes(pid) - before
    assert alone > 5_000_000
    assert grown < 40  # 20 bodies together are 100 MB
