"""Targets, and the labels that somebody gives them: by option, or in Prometheus' own format."""

import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from serving import serving

import vllm_capacity as vc
from vllm_capacity.errors import InputError
from vllm_capacity.live.targets import label, listed_targets, targets

COMMAND = [sys.executable, "-m", "vllm_capacity"]


class Metrics(BaseHTTPRequestHandler):
    """A counter that grows by one per request."""

    asked = 0

    def do_GET(self) -> None:
        type(self).asked += 1
        body = (
            "# TYPE vllm:generation_tokens_total counter\n"
            f'vllm:generation_tokens_total{{engine="0",model_name="m"}} {self.asked}\n'
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def server() -> ThreadingHTTPServer:
    return ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Metrics,), {"asked": 0}))


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*COMMAND, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def groups(window: Path) -> list[str]:
    found = vc.open(window).analyze(price=1.0).bill_by("team")
    return sorted(found.parts)


def test_labels_by_option_and_by_file_are_groups(tmp_path: Path) -> None:
    window, listed = tmp_path / "w", tmp_path / "targets.json"
    with serving(server()) as one, serving(server()) as two:
        listed.write_text(f'[{{"targets": ["{two[7:]}"], "labels": {{"team": "chat"}}}}]')
        arguments = ("--label", "team=search", "--label", "env=prod", "--targets", listed)
        done = run("scrape", one, *arguments, "--every", "0.1s", "--for", "1s", "--to", window)
    assert done.returncode == 0, done.stderr
    assert groups(window) == ["chat", "search"]
    by = run("figures", window, "--by", "env")
    assert (by.returncode, "prod" in by.stdout) == (0, True)


def test_labels_survive_in_the_journal(tmp_path: Path) -> None:
    """A run that was killed is rescued from it."""
    saved, window = tmp_path / "saved.jsonl", tmp_path / "w"
    text = 'vllm:generation_tokens_total{engine=\\"0\\"} '
    rows = [
        f'{{"t": {1764000000 + i}, "target": "a:1", "status": 200, "text": "{text}{i}\\n", '
        f'"labels": {{"team": "search"}}}}'
        for i in range(30)
    ]
    saved.write_text("\n".join(rows) + "\n")
    done = run("scrape", "--from", saved, "--to", window)
    assert done.returncode == 0, done.stderr
    assert groups(window) == ["search"]


def test_python_takes_labels_and_a_file(tmp_path: Path) -> None:
    listed = tmp_path / "targets.yaml"
    with serving(server()) as one, serving(server()) as two:
        listed.write_text(f"- targets: ['{two}']\n  labels: {{env: test}}\n")
        vc.scrape(
            one,
            to=tmp_path / "w",
            duration="1s",
            every="0.1s",
            labels={"team": "x"},
            targets=listed,
        )
    assert groups(tmp_path / "w") == ["x"]


def test_labels_of_the_file_win(tmp_path: Path) -> None:
    listed = tmp_path / "t.yml"
    listed.write_text("- targets: [a:1, 'http://b:2/m']\n  labels: {team: chat, zone: 1}\n")
    found = listed_targets(listed, {"team": "search", "env": "prod"})
    assert [(one.url, one.instance) for one in found] == [
        ("http://a:1/metrics", "a:1"),
        ("http://b:2/m", "b:2"),
    ]
    assert found[0].labels == {"team": "chat", "env": "prod", "zone": "1"}


@pytest.mark.parametrize(
    "text", ["team", "=x", "team=", "7=x", "a b=c", "__meta=x", "model=x", "instance=x", "a=b\nc"]
)
def test_what_is_no_label_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="label"):
        label(text)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        pytest.param("", "lists no targets", id="empty"),
        pytest.param("{}", "lists no targets", id="no list"),
        pytest.param("- x", "group without targets", id="no group"),
        pytest.param("- targets: []", "group without targets", id="an empty group"),
        pytest.param("- targets: [1]", "not text", id="a number"),
        pytest.param(
            "- targets: [a:1]\n  labels: [x]", "group without targets", id="labels a list"
        ),
        pytest.param("- targets: [a:1]\n  labels: {model: x}", "label model", id="a label taken"),
        pytest.param("- targets: ['ftp://x']", "not http", id="no http"),
        pytest.param("[", "Cannot read targets", id="no YAML"),
    ],
)
def test_another_file_is_refused_with_the_reason(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "t.yml").write_text(text)
    with pytest.raises(InputError, match=complaint):
        listed_targets(tmp_path / "t.yml")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file"):
        listed_targets(tmp_path / "t.yml")


def test_a_target_by_option_and_by_file_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "t.yml"
    listed.write_text("- targets: [a:1]")
    done = run("scrape", "http://a:1", "--targets", listed, "--to", tmp_path / "w")
    assert (done.returncode, "given twice" in done.stderr) == (2, True)


def test_labels_of_saved_scrapes_are_their_own(tmp_path: Path) -> None:
    (tmp_path / "s.jsonl").write_text("{}")
    done = run("scrape", "--from", tmp_path / "s.jsonl", "--label", "a=b", "--to", tmp_path / "w")
    assert (done.returncode, "saved scrapes have their own" in done.stderr) == (2, True)


def test_urls_alone_have_no_labels() -> None:
    assert [one.labels for one in targets(["a:1", "b:1"])] == [{}, {}]
