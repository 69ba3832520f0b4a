"""The journal of live scraping: nothing is lost between threads, and its steady clock is kept."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.live.serving import serving
from vllm_capacity.live.scrape import Journal, run
from vllm_capacity.live.targets import targets
from vllm_capacity.sources.exposition import Scrape, read_saved_scrapes, read_scrapes

TEXT = (
    "# TYPE vllm:generation_tokens_total counter\n"
    'vllm:generation_tokens_total{engine="0",model_name="m"} 7\n'
)


def test_what_threads_append_together_is_all_there_in_their_own_order(tmp_path):
    journal, threads, each = Journal(tmp_path / "j"), 8, 50

    def append(thread: int) -> None:
        for number in range(each):
            journal.append((Scrape(1000.0 + number, f"t{thread}", 200, TEXT), ""))

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(append, range(threads)))
    kept = list(read_saved_scrapes(tmp_path / "j"))
    assert len(kept) == threads * each
    for thread in range(threads):
        own = [scrape.t_unix_seconds for scrape in kept if scrape.target == f"t{thread}"]
        assert own == [1000.0 + number for number in range(each)]


def test_several_attempts_are_appended_at_once(tmp_path):
    journal = Journal(tmp_path / "j")
    journal.append(*((Scrape(1.0, f"t{n}", 0, ""), "under way") for n in range(3)))
    assert [scrape.target for scrape in read_saved_scrapes(tmp_path / "j")] == ["t0", "t1", "t2"]


def test_a_disk_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "nowhere" / "j").append((Scrape(1.0, "t", 200, TEXT), ""))


class Metrics(BaseHTTPRequestHandler):
    """Answers with one counter."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(TEXT)))
        self.end_headers()
        self.wfile.write(TEXT.encode())

    def log_message(self, *_):
        pass


def test_a_live_run_uses_a_monotonic_clock(tmp_path):
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), Metrics)) as url, httpx.Client() as client:
        run(
            targets((url,)),
            client=client,
            journal=Journal(tmp_path / "j"),
            every_seconds=0.05,
            for_seconds=0.2,
            stop=threading.Event(),
            on_progress=lambda progress: None,
        )
    kept = list(read_saved_scrapes(tmp_path / "j"))
    assert len({scrape.run_unix_seconds for scrape in kept}) == 1
    # A slow answer is written after the next one, so sort by wall-clock time.
    steady = [scrape.at_seconds for scrape in sorted(kept, key=lambda one: one.t_unix_seconds)]
    assert steady == sorted(steady)
    assert all(
        abs(scrape.run_unix_seconds + scrape.at_seconds - scrape.t_unix_seconds) < 0.1
        for scrape in kept
    )


def saved(path, stamps, steady):
    """A journal of one run: stamps as the time of day had them, and the steady seconds."""
    lines = [
        {"t": t, "run": 1.8e9, "at": at, "target": "vllm", "status": 200, "text": TEXT}
        for t, at in zip(stamps, steady, strict=True)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


T0 = 1.8e9
STEADY = [float(2 * n) for n in range(50)]


@pytest.mark.parametrize(
    ("set_by", "moved"),
    [
        pytest.param(lambda n: -5 * (n >= 30), 20, id="set back 5 s"),
        pytest.param(lambda n: 0.5 * (n >= 30), 20, id="set forward by half a second"),
        pytest.param(lambda n: 3600 * (n >= 40), 10, id="the last ten scrapes an hour ahead"),
        pytest.param(lambda n: -1.7e9 * (n < 10), 10, id="1970 until it was set"),
        pytest.param(lambda n: 3.1e7 * (n == 20), 1, id="one scrape a year ahead"),
    ],
)
def test_scrapes_are_where_the_steady_clock_has_them(tmp_path, set_by, moved):
    stamps = [T0 + at + set_by(n) for n, at in enumerate(STEADY)]
    rows = read_scrapes(saved(tmp_path / "j", stamps, STEADY))
    up = rows.series.filter(rows.series["metric"] == "up")["series_id"].item()
    times = rows.samples.filter(rows.samples["series_id"] == up)["ts"].dt.epoch("us").to_list()
    assert times == [round((T0 + at) * 1e6) for at in STEADY]
    assert rows.ingest_notes.select("check", "count").rows() == [("clock", moved)]


@pytest.mark.parametrize(
    ("stamps", "steady"),
    [
        pytest.param([T0 + at for at in STEADY], STEADY, id="both clocks agree"),
        pytest.param([T0 + at + 0.04 for at in STEADY], STEADY, id="but for some hundredths"),
        pytest.param([T0 + at for at in STEADY], [0.0] * 50, id="the steady clock stands still"),
        pytest.param([T0 + at for at in STEADY], STEADY[::-1], id="it runs backward"),
        pytest.param([T0 + at for at in STEADY], [None] * 50, id="there is none"),
        pytest.param([T0 + at for at in STEADY], ["x"] * 50, id="it is no number"),
        pytest.param([T0 + at for at in STEADY], [1e300] * 50, id="it is impossibly large"),
    ],
)
def test_stamps_stay_where_no_steady_clock_says_otherwise(tmp_path, stamps, steady):
    rows = read_scrapes(saved(tmp_path / "j", stamps, steady))
    up = rows.series.filter(rows.series["metric"] == "up")["series_id"].item()
    times = rows.samples.filter(rows.samples["series_id"] == up)["ts"].dt.epoch("us").to_list()
    assert times == [round(t * 1e6) for t in stamps]
    assert rows.ingest_notes.is_empty()
