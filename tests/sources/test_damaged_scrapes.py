"""Expositions cut short, and damaged saved files: reported, never taken as complete."""

import gzip
import json

import pytest

from tests.answering import answer
from vllm_capacity.errors import InputError
from vllm_capacity.sources.exposition import Scrape, ScrapeReader, read_scrapes
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window

TOKENS = "vllm:generation_tokens_total"


def text(tokens):
    return f'# TYPE {TOKENS} counter\n{TOKENS}{{engine="0",model_name="m"}} {tokens}\n'


def histogram(more=""):
    name, labels = "vllm:time_to_first_token_seconds", 'engine="0",model_name="m"'
    return (
        f'# TYPE {name} histogram\n{name}_bucket{{{labels},le="1.0"}} 3\n'
        f'{name}_bucket{{{labels},le="+Inf"}} 5\n{more}{name}_count{{{labels}}} 5\n'
        f"{name}_sum{{{labels}}} 2.5\n"
    )


def line(number, **more):
    row = {"t": 1e9 + 2 * number, "target": "v", "status": 200, "text": text(1000 + number)}
    return (json.dumps(row | more) + "\n").encode()


MEMBERS = [gzip.compress(line(number), mtime=0) for number in range(6)]


def values(rows, metric=TOKENS):
    ids = rows.series.filter(rows.series["metric"] == metric)["series_id"]
    kept = rows.samples.filter(rows.samples["series_id"].is_in(ids.implode()))
    return kept.sort("ts")["value"].to_list()


def read(tmp_path, content):
    path = tmp_path / "s.journal"
    path.write_bytes(content)
    return read_scrapes(path)


def result(rows):
    return [(row["check"], row["subject"], row["detail"]) for row in rows.ingest_notes.to_dicts()]


@pytest.mark.parametrize(
    ("cut", "kind"),
    [
        pytest.param(text(1150000)[:-5], "", id="in the middle of a number"),
        pytest.param(text(1150000)[:-1], "", id="before the last line feed"),
        pytest.param(text(1150000), "application/openmetrics-text", id="OpenMetrics without # EOF"),
        pytest.param("", "", id="before the first byte"),
        pytest.param(text(1150000) + "\0\0\0\n", "", id="in a file full of zeros"),
        pytest.param(text(1150000).replace('"m"', '"\ud800"'), "", id="in the middle of a letter"),
    ],
)
def test_a_saved_text_that_is_cut_short_is_a_failed_scrape(tmp_path, cut, kind):
    rows = read(tmp_path, line(0) + line(1, text=cut, ctype=kind) + line(2))
    assert (values(rows), values(rows, "up")) == ([1000.0, 1002.0], [1.0, 0.0, 1.0])
    assert [subject for _, subject, _ in result(rows)] in (["failed scrape"], ["unparsable scrape"])


@pytest.mark.parametrize(
    "whole",
    [
        pytest.param(text(7), id="classic text"),
        pytest.param(text(7) + "# EOF\n", id="OpenMetrics"),
        pytest.param(text(7) + "# EOF", id="OpenMetrics without a last line feed"),
    ],
)
def test_a_text_that_ends_as_its_format_says_is_a_scrape(tmp_path, whole):
    assert values(read(tmp_path, line(0, text=whole))) == [7.0]


def test_a_failed_attempt_is_in_the_quality_report_with_its_cause(tmp_path):
    failed = line(1, status=0, text="", err="ReadTimeout: timed out")
    rows = read(tmp_path, line(0) + failed + line(2, status=503, text="") + line(3))
    quality = answer(open_window(write_window(tmp_path / "w", rows, {})))["quality"]
    found = next(item for item in quality if item["check"] == "failed")
    assert (found["count"], found["severity"]) == (2, "info")
    assert "failed scrape: HTTP 503; ReadTimeout: timed out" in found["effect"]


def test_a_bucket_exported_twice_with_different_counts_makes_no_histogram():
    twice = 'vllm:time_to_first_token_seconds_bucket{engine="0",model_name="m",le="1.0"} 4\n'
    reader = ScrapeReader()
    reader.add(Scrape(1e9, "v", 200, histogram(twice)))
    rows = reader.buffer.rows()
    assert rows.histograms.is_empty()
    assert rows.ingest_notes["check"].to_list() == ["coverage"]


def test_a_duplicated_exposition_counts_once():
    reader = ScrapeReader()
    reader.add(Scrape(1e9, "v", 200, histogram() + histogram()))
    assert set(reader.buffer.rows().histograms["count"].to_list()) == {5.0}


def flipped(member):
    at = len(member) // 2
    return member[:at] + bytes([member[at] ^ 16]) + member[at + 1 :]


@pytest.mark.parametrize(
    ("damaged", "kept"),
    [
        pytest.param(flipped(MEMBERS[2]), [0, 1, 3, 4, 5], id="a flipped bit"),
        pytest.param(MEMBERS[2][:-8] + bytes(4) + MEMBERS[2][-4:], [0, 1, 3, 4, 5], id="its sum"),
        pytest.param(MEMBERS[2][:40], [0, 1, 3, 4, 5], id="a member cut off"),
        pytest.param(b"", [0, 1, 3, 4, 5], id="a member gone: nothing to see"),
        pytest.param(bytes(300), [0, 1, 3, 4, 5], id="zeros"),
        pytest.param(b"\x1f\x8b\x08" * 20, [0, 1, 3, 4, 5], id="beginnings of nothing"),
        pytest.param(MEMBERS[2], [0, 1, 2, 3, 4, 5], id="no damage"),
    ],
)
def test_what_lies_behind_damage_is_read(tmp_path, damaged, kept):
    rows = read(tmp_path, b"".join([*MEMBERS[:2], damaged, *MEMBERS[3:]]))
    assert values(rows) == [1000.0 + number for number in kept]
    is_reported = bool(result(rows))
    assert is_reported == (damaged not in (b"", MEMBERS[2]))
    if is_reported:
        begun, end = len(b"".join(MEMBERS[:2])), len(b"".join(MEMBERS[:2])) + len(damaged)
        output = f"s.journal: bytes {begun:,} to {end:,} are damaged; the scrapes there are lost"
        assert result(rows) == [("coverage", "saved scrapes", output)]


@pytest.mark.parametrize(
    ("content", "kept", "says"),
    [
        pytest.param(b"".join(MEMBERS)[:-30], [0, 1, 2, 3, 4], "cut short at byte", id="members"),
        pytest.param(
            gzip.compress(b"".join(map(line, range(6))) + bytes(range(35, 127)) * 200, mtime=0)[
                :-60
            ],
            [0, 1, 2, 3, 4, 5],
            "cut short at byte",
            id="one member",
        ),
        pytest.param(
            b"".join(map(line, range(6)))[:-30], [0, 1, 2, 3, 4], "last line is cut", id="plain"
        ),
    ],
)
def test_the_end_of_a_truncated_file_is_reported(tmp_path, content, kept, says):
    rows = read(tmp_path, content)
    assert values(rows) == [1000.0 + number for number in kept]
    assert any(says in detail for _, _, detail in result(rows))


def test_lines_may_lie_across_the_members_of_a_whole_file(tmp_path):
    everything = b"".join(map(line, range(6)))
    parts = [everything[at : at + 50] for at in range(0, len(everything), 50)]
    rows = read(tmp_path, b"".join(map(gzip.compress, parts)))
    assert (values(rows), result(rows)) == ([1000.0 + number for number in range(6)], [])


def test_a_wholly_damaged_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="has no scrapes"):
        read(tmp_path, flipped(MEMBERS[0])[:60])


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[" * 100_000 + b"\n", id="nested without end"),
        pytest.param(b'{"t": ' + b"9" * 5000 + b', "target": "v", "status": 200}\n', id="a number"),
    ],
)
def test_a_line_that_no_scraper_wrote_is_refused(tmp_path, content):
    with pytest.raises(InputError, match="line 1"):
        read(tmp_path, content)
