"""Which report this one is compared with, and the change shown on a tile."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from msgspec.structs import replace

from vllm_capacity.render.numbers import hours, span
from vllm_capacity.render.report.metadata import Metadata, Tile, Tiles
from vllm_capacity.render.report.previous import change, previous_report, with_changes

DAY = datetime(2026, 11, 24, tzinfo=UTC)
PRICE = [[1.0, 0.1, 0.1, 0.1]]


def report(day=0.0, *, length=1.0, tiles=(), previous=None, **line):
    """A report of the window that starts on that day and is that many days long."""
    start, end = DAY + timedelta(days=day), DAY + timedelta(days=day + length)
    whole = {
        "models": ["m"],
        "servers": ["a:8000"],
        "terms": {"rates": PRICE, "ttft_p95_seconds": 2.0},
        "price": "$0.100 per GPU-hour",
        "is_simulated": False,
        "start": start.isoformat(),
        "end": end.isoformat(),
        "span": span(start, end),
        "hours": hours(length * 24),
    }
    output = {"notebook": "cost-report.ipynb", "title": "What?", "line": {**whole, **line}}
    return replace(msgspec.convert(output, Metadata), tiles=tuple(tiles), previous=previous)


def tile(mid, low=None, high=None, *, writes="usd", figure="usd_per_request", hangs_on=""):
    low, high = mid if low is None else low, mid if high is None else high
    return Tile(figure, "Cost", low=low, mid=mid, high=high, writes=writes, hangs_on=hangs_on)


def page_before(reports, *, now=None, page="now.html"):
    found = previous_report(now or report(), reports, page=page)
    return None if found is None else (found.page, found.line.end[:10])


@pytest.mark.parametrize(
    ("reports", "expected"),
    [
        pytest.param({}, None, id="an empty folder"),
        pytest.param({"a.html": report(-1)}, ("a.html", "2026-11-24"), id="the day before"),
        pytest.param(
            {"a.html": report(-2), "b.html": report(-1), "c.html": report(-3)},
            ("b.html", "2026-11-24"),
            id="of several the one that ends latest",
        ),
        pytest.param(
            {"a.html": report(-1), "b.html": report(-3, length=3.0)},
            ("a.html", "2026-11-24"),
            id="of two that end together the one that starts later",
        ),
        pytest.param({"a.html": report(1)}, None, id="a later window is none"),
        pytest.param({"a.html": report(-1, start="soon")}, None, id="a start that is no time"),
        pytest.param(
            {"a.html": report(-1, start="0001-01-01T00:00:00+14:00")},
            None,
            id="before the calendar",
        ),
        pytest.param(
            {"a.html": report(-1, tiles=[replace(tile(1.0), low=None)])},
            None,
            id="half an interval",
        ),
        pytest.param({"a.html": report(0)}, None, id="the same window is none"),
        pytest.param({"a.html": report(-0.5)}, None, id="a window that overlaps is none"),
        pytest.param(
            {"a.html": report(-1, length=1.01)},
            ("a.html", "2026-11-24"),
            id="windows that overlap by a quarter of an hour of a day follow each other",
        ),
        pytest.param({"a.html": report(-1, models=["n"])}, None, id="another model"),
        pytest.param({"a.html": report(-1, servers=["b:8000"])}, None, id="other servers"),
        pytest.param(
            {"a.html": report(-1, servers=["a:8000", "b:8000"])},
            ("a.html", "2026-11-24"),
            id="a fleet that shrank",
        ),
        pytest.param({"a.html": report(-1, is_simulated=True)}, None, id="a simulated window"),
        pytest.param({"a.html": replace(report(-1), title="Else?")}, None, id="another title"),
        pytest.param({"a.html": replace(report(-1), notebook="x")}, None, id="another notebook"),
        pytest.param(
            {"a.html": report(-1, terms=None)},
            None,
            id="a report of an older version, with fewer figures",
        ),
        pytest.param(
            {"now.html": report(-1)},
            ("", "2026-11-24"),
            id="the page about to be replaced, where its window is an earlier one",
        ),
        pytest.param(
            {"now.html": report(0, previous=report(-1))},
            ("", "2026-11-24"),
            id="what the same window was compared with the first time",
        ),
        pytest.param(
            {"now.html": report(0, previous=report(-1)), "a.html": report(-1)},
            ("a.html", "2026-11-24"),
            id="of the same window, the page that is still there",
        ),
        pytest.param(
            {"now.html": report(-1, previous=report(-2))},
            ("", "2026-11-24"),
            id="the replaced page before what it was compared with",
        ),
    ],
)
def test_report_before(reports, expected):
    assert page_before(reports) == expected


def test_run_that_is_repeated_finds_what_it_found():
    folder = {"prod.html": report(-1, tiles=[tile(1.0)])}
    first = previous_report(report(), folder, page="prod.html")
    second = previous_report(report(), {"prod.html": report(previous=first)}, page="prod.html")
    assert (second, first.previous) == (first, None)


@pytest.mark.parametrize(
    ("now", "then", "expected"),
    [
        pytest.param(tile(1.12), tile(1.0), "▲ up 12 % from $1.00 since", id="up"),
        pytest.param(tile(0.5), tile(1.0), "▼ down 50 % from $1.00 since", id="down"),
        pytest.param(tile(1.0), tile(0.0), "▲ up from $0 since", id="from nothing"),
        pytest.param(tile(1.0001), tile(1.0), "about the same as in", id="written alike"),
        pytest.param(tile(0.0), tile(0.0), "about the same as in", id="nothing, twice"),
        pytest.param(
            tile(1.02, 0.9, 1.1),
            tile(0.98, 0.8, 1.0),
            "no clear change: $0.980 → $1.02 since",
            id="intervals that overlap",
        ),
        pytest.param(
            tile(1.02, 0.9, 1.1),
            tile(0.98),
            "no clear change: $0.980 → $1.02 since",
            id="a counted figure inside the interval",
        ),
        pytest.param(
            tile(1.02, 0.9, 1.1), tile(1.02, 0.5, 3.0), "about the same as in", id="both, alike"
        ),
        pytest.param(
            tile(2.0, 1.5, 2.5),
            tile(1.0, 0.8, 1.4),
            "▲ up 100 % from $1.00 since",
            id="intervals apart",
        ),
        pytest.param(
            tile(0.89, 0.87, 0.93, writes="percent"),
            tile(0.28, 0.2, 0.4),
            "▲ up from 28 % since",
            id="a share has no percentage of itself",
        ),
        pytest.param(
            tile(0.002, writes="usd_per_thousand"),
            tile(0.02),
            "▼ down 90 % from $20.00 since",
            id="under a cent, as the tile writes it now",
        ),
        pytest.param(tile(1.0), tile(None), "not known before, in", id="not known before"),
        pytest.param(tile(None), tile(1.0), None, id="not known now"),
        pytest.param(tile(1.0), None, None, id="no such figure before"),
    ],
)
def test_change(now, then, expected):
    assert _text(change(now, then)) == expected


def _text(found):
    if found is None:
        return None
    return f"{found.arrow} {found.words}{found.joins}".strip().replace("\xa0", " ")


def changed(now, before):
    found = previous_report(now, {"then.html": before}, page="now.html")
    return with_changes(Tiles(now.tiles), now.line, found)


@pytest.mark.parametrize(
    ("term", "value", "expected"),
    [
        pytest.param("rates", [[1.0, 2.0, 2.0, 2.0]], "a different price", id="a price"),
        pytest.param("ttft_p95_seconds", 1.0, "a different target", id="a target"),
    ],
)
def test_figures_depending_on_a_price_are_compared_only_under_the_same_price(term, value, expected):
    figures = [tile(1.0, hangs_on=term), tile(2.0, figure="utilization")]
    terms = {"rates": PRICE, "ttft_p95_seconds": 2.0}
    then = report(-1, tiles=[tile(9.0), tile(1.0, figure="utilization")], terms=terms)
    now = report(tiles=figures, terms={**terms, term: value})
    changes = [_text(each.change) for each in changed(now, then).tiles]
    assert changes == [f"not compared: {expected} in", "▲ up 100 % from $1.00 since"]


@pytest.mark.parametrize(
    ("day", "length", "expected"),
    [
        pytest.param(-1, 1.0, "the report ending 00:00:00 UTC", id="ended this very day"),
        pytest.param(-2, 1.25, "the report ending 23 Nov 06:00 UTC", id="another day"),
        pytest.param(-400, 1.0, "the report ending 21 Oct 2025 00:00 UTC", id="another year"),
    ],
)
def test_report_before_is_named_by_its_end(day, length, expected):
    now = report(length=0.5, tiles=[tile(2.0)])
    found = changed(now, report(day, length=length, tiles=[tile(1.0)]))
    assert found.tiles[0].change.report == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param({}, ".", id="nothing else differs"),
        pytest.param(
            {"terms": {"rates": [], "ttft_p95_seconds": 2.0}, "price": "no price given"},
            ", at a different price: no price given.",
            id="the price",
        ),
        pytest.param(
            {"servers": ["a:8000", "b:8000"]},
            ". It had 2 servers, this one has 1, 1 in both.",
            id="the servers",
        ),
    ],
)
def test_what_else_differed_is_said_once(line, expected):
    since = changed(report(tiles=[tile(2.0)]), report(-1, tiles=[tile(1.0)], **line)).since
    window = "23 Nov 2026 00:00 to 24 Nov 2026 00:00 UTC (24.0 h)"
    assert (since.page, since.window, since.differences) == ("then.html", window, expected)


def test_the_first_report_mentions_no_change():
    tiles = Tiles((tile(1.0),))
    assert with_changes(tiles, report().line, None) == tiles
