"""What a second `stack init` may do to the rights, passwords and data of a running stack: nothing.

Rights are only added; what takes one away is asked for by name; a new password names whom it
concerns, and writing is watched until it goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from recorded_parseable import RecordedParseable

from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.live.stack import (
    INGEST_SECRET,
    READER_SECRET,
    Names,
    initialise,
    newest_arrival,
    read_secret,
    writing_goes_on,
)

RUNNING = Names()
OTHER = Names(metrics_stream="other")


def right(privilege: str, stream: str) -> dict[str, object]:
    return {"privilege": privilege, "resource": {"stream": stream}}


@pytest.fixture
def server() -> RecordedParseable:
    return RecordedParseable()


def test_another_stream_takes_no_right_from_the_running_one(
    server: RecordedParseable, tmp_path: Path
) -> None:
    with server.client() as client:
        initialise(client, RUNNING, tmp_path)
        done = initialise(client, OTHER, tmp_path)
    for role, privilege in (("vllm_ingestor", "ingestor"), ("vllm_reader", "reader")):
        assert server.roles[role] == [
            right(privilege, "vllm_metrics"),
            right(privilege, "vllm_traces"),
            right(privilege, "other"),
        ]
    assert "role vllm_ingestor: ingestor of vllm_metrics, vllm_traces, other" in done


def test_rights_that_an_administrator_gave_stay(server: RecordedParseable, tmp_path: Path) -> None:
    own = [{"privilege": "reader"}, right("writer", "mine")]
    server.roles["vllm_reader"] = list(own)
    with server.client() as client:
        initialise(client, RUNNING, tmp_path)
    assert server.roles["vllm_reader"][:2] == own


def test_a_role_that_has_its_rights_is_not_written(
    server: RecordedParseable, tmp_path: Path
) -> None:
    with server.client() as client:
        initialise(client, RUNNING, tmp_path)
        server.calls.clear()
        initialise(client, RUNNING, tmp_path)
    assert server.writes == []


def test_a_right_is_revoked_by_name(server: RecordedParseable, tmp_path: Path) -> None:
    with server.client() as client:
        initialise(client, OTHER, tmp_path)
        done = initialise(client, RUNNING, tmp_path, revoke=["other"])
    assert server.roles["vllm_reader"] == [
        right("reader", "vllm_traces"),
        right("reader", "vllm_metrics"),
    ]
    assert "role vllm_reader: reader of vllm_traces, vllm_metrics, no longer of other" in done


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        pytest.param("nope", "No role of the stack has a right to the stream 'nope'", id="unknown"),
        pytest.param("vllm_metrics", "cannot be both set up and revoked", id="the one set up"),
    ],
)
def test_an_impossible_revocation_stops_init_before_it_changes_anything(
    server: RecordedParseable, tmp_path: Path, stream: str, says: str
) -> None:
    with server.client() as client:
        initialise(client, RUNNING, tmp_path)
        server.calls.clear()
        with pytest.raises(InputError, match=says):
            initialise(client, RUNNING, tmp_path, revoke=[stream])
    assert server.writes == []


@pytest.mark.parametrize("odd", ["text", 5, {"roles": []}, [1]], ids=str)
def test_rights_that_cannot_be_read_are_not_overwritten(tmp_path: Path, odd: object) -> None:
    class Odd(RecordedParseable):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            if request.method == "GET" and "/role/" in request.url.path:
                return httpx.Response(200, json=odd)
            return super().__call__(request)

    server = Odd()
    with server.client() as client, pytest.raises(SourceError, match="Nothing was changed"):
        initialise(client, RUNNING, tmp_path)
    assert server.writes == []


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(lambda rights: rights, id="as a list"),
        pytest.param(lambda rights: {"privileges": rights}, id="in an object under another name"),
    ],
)
def test_rights_are_read_in_every_form_that_versions_tell_them(
    tmp_path: Path, changed: Callable[[object], object]
) -> None:
    class Other(RecordedParseable):
        def __call__(self, request: httpx.Request) -> httpx.Response:
            answer = super().__call__(request)
            if request.method == "GET" and "/role/" in request.url.path:
                return httpx.Response(200, json=changed(answer.json()["actions"]))
            return answer

    other = Other()
    with other.client() as client:
        initialise(client, RUNNING, tmp_path)
        initialise(client, OTHER, tmp_path)
    assert len(other.roles["vllm_ingestor"]) == 3


def test_metrics_and_spans_are_two_streams() -> None:
    with pytest.raises(InputError, match="two streams"):
        Names(metrics_stream="x", traces_stream="x")


@pytest.mark.parametrize("content", [b"<html>", b"[1]", b"5", b"[" * 100_000, b'{"a": 1}', b""])
def test_a_server_that_is_not_parseable_is_reported(tmp_path: Path, content: bytes) -> None:
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=content))
    with (
        httpx.Client(base_url="http://x.test", transport=transport) as client,
        pytest.raises(SourceError, match=r"does not answer .* as Parseable does"),
    ):
        initialise(client, RUNNING, tmp_path)


@pytest.mark.parametrize(
    ("mode", "text", "says"),
    [
        pytest.param(0o644, b"a", r"others can read it \(mode 0644\)", id="others may read it"),
        pytest.param(0o640, b"a", "others can read it", id="its group may read it"),
        pytest.param(0o600, b"\xff", "is not text", id="binary"),
    ],
)
def test_a_secret_that_others_can_read_is_refused(
    tmp_path: Path, mode: int, text: bytes, says: str
) -> None:
    path = tmp_path / "secret"
    path.write_bytes(text)
    path.chmod(mode)
    with pytest.raises(InputError, match=says):
        read_secret(path)


def arrivals(times: list[str | None]) -> Callable[[httpx.Request], httpx.Response]:
    """A stream whose newest arrival is asked for again and again."""

    def answer(request: httpx.Request) -> httpx.Response:
        assert "max(p_timestamp)" in json.loads(request.content)["query"]
        return httpx.Response(200, json=[{"newest": times.pop(0)}])

    return answer


@pytest.mark.parametrize(
    ("before", "times", "says"),
    [
        pytest.param(None, [], "nothing was being written", id="no writer before"),
        pytest.param("2026-11-24T08:00", ["2026-11-24T08:01"], "is being written to", id="at once"),
        pytest.param(
            "2026-11-24T08:00",
            ["2026-11-24T08:00", None, "2026-11-24T08:02"],
            "is being written to",
            id="after the Collector's restart",
        ),
    ],
)
def test_writing_is_checked_after_a_new_password(
    before: str | None, times: list[str | None], says: str
) -> None:
    transport = httpx.MockTransport(arrivals(times))
    with httpx.Client(base_url="http://x.test", transport=transport) as client:
        output = writing_goes_on(client, "s", before=before, looks=3, pause=lambda: None)
    assert says in output


def test_writing_that_stopped_with_a_new_password_is_an_error() -> None:
    transport = httpx.MockTransport(arrivals(["2026-11-24T08:00"] * 3))
    with (
        httpx.Client(base_url="http://x.test", transport=transport) as client,
        pytest.raises(SourceError, match=r"Nothing has been written to s .* restart it now"),
    ):
        writing_goes_on(client, "s", before="2026-11-24T08:00", looks=3, pause=lambda: None)


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(httpx.Response(400, text="No field named p_timestamp"), id="no column yet"),
        pytest.param(httpx.Response(200, json=[]), id="no row"),
        pytest.param(httpx.Response(200, json=[{"newest": None}]), id="nothing lately"),
        pytest.param(httpx.Response(200, text="<html>"), id="no JSON"),
    ],
)
def test_an_empty_stream_has_no_newest_arrival(answer: httpx.Response) -> None:
    transport = httpx.MockTransport(lambda request: answer)
    with httpx.Client(base_url="http://x.test", transport=transport) as client:
        assert newest_arrival(client, "s") is None


def test_a_secret_with_a_stray_letter_is_not_sent(
    server: RecordedParseable, tmp_path: Path
) -> None:
    with server.client() as client:
        initialise(client, RUNNING, tmp_path)
        (tmp_path / INGEST_SECRET).write_text("Basic \N{LATIN SMALL LETTER E WITH ACUTE}")
        with pytest.raises(InputError, match="not allowed in an HTTP header"):
            initialise(client, RUNNING, tmp_path)
    assert (tmp_path / READER_SECRET).exists()
