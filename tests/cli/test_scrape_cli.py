"""Scraping a real HTTP server with the real command, ended in every way a person ends it."""

import gzip
import json
import re
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.answering import answer
from vllm_capacity.sources.exposition import read_saved_scrapes
from vllm_capacity.telemetry.window import open_window

COMMAND = [sys.executable, "-m", "vllm_capacity", "scrape"]


class Served(BaseHTTPRequestHandler):
    """A counter that grows by one per request; every third request of /flaky fails."""

    asked = 0

    def do_GET(self):
        type(self).asked += 1
        if self.path.startswith("/flaky") and self.asked % 3 == 0:
            self.send_error(503)
            return
        if self.path.startswith("/other"):
            self.answer(b"# TYPE other gauge\nother 1\n")
            return
        body = (
            "# TYPE vllm:generation_tokens_total counter\n"
            f'vllm:generation_tokens_total{{engine="0",model_name="m"}} {self.asked}\n'
        ).encode()
        self.answer(body)

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    handler = type("Counter", (Served,), {"asked": 0})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()


@pytest.fixture
def run(command):
    return partial(command, "scrape")


def start(*args):
    return subprocess.Popen([*COMMAND, *map(str, args)], stderr=subprocess.PIPE, text=True)


def wait_for_scrapes(journal, count):
    for _ in range(300):
        if journal.exists() and len(list(read_saved_scrapes(journal))) >= count:
            return
        time.sleep(0.1)
    pytest.fail(f"no {count} scrapes in {journal}")


def test_several_targets_are_several_instances(tmp_path, server, run):
    other = server.replace("127.0.0.1", "localhost")
    done = run(
        server, f"http://{other}/metrics", "--every", "200ms", "--for", "1s", "--to", tmp_path / "w"
    )
    assert done.returncode == 0, done.stderr
    window = open_window(tmp_path / "w")
    assert answer(window)["window"]["engines"] == 2
    assert not (tmp_path / "w.journal").exists()


def test_scrapes_lie_on_a_fixed_grid(tmp_path, server, run):
    run(server, "--every", "250ms", "--for", "2s", "--to", tmp_path / "w")
    window = open_window(tmp_path / "w")
    times = window.sql("select ts from samples join series using (series_id) where metric = 'up'")
    assert times.height == 8
    assert (times["ts"][-1] - times["ts"][0]).total_seconds() == pytest.approx(1.75, abs=0.2)


def test_failures_are_recorded_as_such(tmp_path, server, run):
    run(f"http://{server}/flaky", "--every", "100ms", "--for", "1s", "--to", tmp_path / "w")
    up = open_window(tmp_path / "w").sql(
        "select value, count(*) as n from samples join series using (series_id) "
        "where metric = 'up' group by value order by value"
    )
    assert up["value"].to_list() == [0.0, 1.0]


def test_ctrl_c_makes_the_window_of_what_is_there(tmp_path, server):
    process = start(server, "--every", "500ms", "--to", tmp_path / "w")
    wait_for_scrapes(tmp_path / "w.journal", 5)
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert answer(open_window(tmp_path / "w"))["tokens"]["generation"] >= 4


def test_a_kill_loses_at_most_one_scrape(tmp_path, server, run):
    process = start(server, "--every", "100ms", "--to", tmp_path / "w")
    journal = tmp_path / "w.journal"
    wait_for_scrapes(journal, 5)
    process.kill()
    process.communicate(timeout=30)
    kept = len(list(read_saved_scrapes(journal)))
    asked = int(re.search(r"} (\d+)\n$", list(read_saved_scrapes(journal))[-1].text).group(1))
    assert asked - kept <= 1
    again = run(server, "--for", "1s", "--to", tmp_path / "w")
    assert (again.returncode, "Recover it with" in again.stderr) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.journal"]
    rescued = run("--from", journal, "--to", tmp_path / "w")
    assert rescued.returncode == 0, rescued.stderr


def test_a_running_capture_is_not_mistaken_for_a_truncated_one(tmp_path, server, run):
    first = start(server, "--every", "100ms", "--to", tmp_path / "w")
    wait_for_scrapes(tmp_path / "w.journal", 2)
    for more in ([server, "--for", "1s"], ["--from", tmp_path / "w.journal"]):
        done = run(*more, "--to", tmp_path / "w")
        assert (done.returncode, done.stderr.count("\n")) == (3, 1)
        assert "Another run is writing" in done.stderr
    first.send_signal(signal.SIGINT)
    _, output = first.communicate(timeout=30)
    assert first.returncode == 0, output
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_of_two_captures_started_together_one_is_made(tmp_path, server):
    both = [start(server, "--every", "100ms", "--for", "3s", "--to", tmp_path / "w") for _ in "ab"]
    output = [each.communicate(timeout=60)[1] for each in both]
    assert sorted(each.returncode for each in both) in ([0, 2], [0, 3]), output
    up = "select count(*) from samples join series using (series_id) where metric = 'up'"
    assert open_window(tmp_path / "w").sql(up).item() <= 30
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_an_empty_journal_blocks_nothing(tmp_path, server, run):
    (tmp_path / "w.journal").touch()
    done = run(server, "--every", "100ms", "--for", "300ms", "--to", tmp_path / "w")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["w"]


def test_what_a_killed_import_left_is_removed_by_the_next(tmp_path, run):
    saved = tmp_path / "s.jsonl"
    text = "# TYPE vllm:x gauge\nvllm:x 1\n"
    saved.write_text(json.dumps({"t": 1.0, "target": "v", "status": 200, "text": text}) + "\n")
    staged = tmp_path / ".w.writing" / "window" / "samples"
    staged.mkdir(parents=True)
    (staged / "half.parquet").write_bytes(b"PAR1")
    (tmp_path / ".w.writing" / ".lock").touch()
    done = run("--from", saved, "--to", tmp_path / "w")
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.jsonl", "w"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["ftp://x"], "not http:// or https://", id="no http URL"),
        pytest.param(["a:1", "a:1"], "given twice", id="one target twice"),
        pytest.param([], "Give either", id="neither URL nor file"),
        pytest.param(["a:1", "--every", "soon"], "Cannot read 'soon'", id="no duration"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, args, says, run):
    done = run(*args, "--to", tmp_path / "w")
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_dead_target_ends_with_its_cause_and_leaves_nothing(tmp_path, run):
    done = run("127.0.0.1:9", "--every", "100ms", "--for", "300ms", "--to", tmp_path / "w")
    assert done.returncode == 3
    assert "All 3 scrapes failed: ConnectError" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_target_that_is_not_vllm_ends_with_its_cause_and_leaves_nothing(tmp_path, server, run):
    done = run(f"http://{server}/other", "--every", "500ms", "--for", "1s", "--to", tmp_path / "w")
    assert done.returncode == 3
    assert re.search(r"has no vLLM series \([12] good and \d failed scrapes\)", done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_an_import_must_not_hit_an_existing_window(tmp_path, run):
    saved = tmp_path / "s.jsonl.gz"
    text = '# TYPE vllm:x gauge\nvllm:x{engine="0"} 1\n'
    line = json.dumps({"t": 1.0, "target": "v", "status": 200, "text": text})
    saved.write_bytes(gzip.compress(line.encode()))
    (tmp_path / "w").mkdir()
    done = run("--from", saved, "--to", tmp_path / "w")
    assert (done.returncode, "exists already" in done.stderr) == (2, True)


def test_late_scrapes_are_added_to_a_window(tmp_path, run):
    text = "# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total {}\n"

    def saved(name, times):
        path = tmp_path / name
        rows = [
            {"t": float(t), "target": "v", "status": 200, "text": text.format(t)} for t in times
        ]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    run("--from", saved("early", [1000, 1002, 1008]), "--to", tmp_path / "w")
    done = run("--from", saved("late", [1004, 1006, 1010]), "--into", tmp_path / "w")
    assert done.returncode == 0, done.stderr
    assert "1970-01-01T00" in done.stderr
    result = answer(open_window(tmp_path / "w"))
    assert result["tokens"]["generation"] == 10
    assert not [f for f in result["quality"] if f["check"] == "gap"]


def test_damage_in_saved_scrapes_is_reported_and_skipped(tmp_path, run):
    text = "# TYPE vllm:generation_tokens_total counter\nvllm:generation_tokens_total {}\n"
    rows = [
        {"t": 1e9 + t, "target": "v", "status": 200, "text": text.format(t)} for t in range(0, 8, 2)
    ]
    members = [gzip.compress((json.dumps(row) + "\n").encode()) for row in rows]
    members[1] = members[1][:30] + b"\xff" + members[1][31:]
    saved = tmp_path / "s.journal"
    saved.write_bytes(b"".join(members))
    done = run("--from", saved, "--to", tmp_path / "w")
    assert done.returncode == 0, done.stderr
    assert "vllm-capacity: s.journal: bytes " in done.stderr
    result = answer(open_window(tmp_path / "w"))
    assert result["tokens"]["generation"] == 6
    assert [q["severity"] for q in result["quality"] if "are damaged" in q["effect"]] == ["warning"]
