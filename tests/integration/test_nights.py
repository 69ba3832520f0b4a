"""Seven simulated nights against a real Prometheus: one missed, one with a dead source, late data.

The clock is an argument. What each day is to hold is known: a server made up here, whose counters
were backfilled. The pages are made by a notebook of a few cells, to be quick.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import nbformat
import pytest

from tests.integration.real_prometheus import backfill, free_port, real_prometheus
from vllm_capacity.analysis import Analysis
from vllm_capacity.cli.nights import Done, Night, missing_days, night
from vllm_capacity.cli.settings import DaySettings, SourceSettings
from vllm_capacity.errors import NoTelemetryError, SourceError
from vllm_capacity.render.report.metadata import page_metadata
from vllm_capacity.render.report.write import ReportOrder
from vllm_capacity.telemetry.window import open_window

FIRST = date(2026, 11, 2)
DAYS = tuple(FIRST + timedelta(days=n) for n in range(7))
EVERY = timedelta(minutes=5)
LATE_DAY = DAYS[3]
LATE_HOURS = range(12, 20)
TARGET = 'instance="gpu-0:8000",job="vllm"'
ENGINE = f'{TARGET},engine="0",model_name="m"'


def requests_by(at: datetime) -> int:
    """How many requests the server had finished: more from day to day, none before the first."""
    days, minutes = divmod((at - midnight(FIRST)) // timedelta(minutes=1), 24 * 60)
    whole_days = sum(24 * 60 * (1 + 3 * day) for day in range(days))
    return whole_days + minutes * (1 + 3 * days)


def midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def scrapes() -> list[datetime]:
    count = (timedelta(days=len(DAYS)) + timedelta(hours=6)) // EVERY
    return [midnight(FIRST) + timedelta(minutes=1) + EVERY * n for n in range(count)]


def is_late(at: datetime) -> bool:
    return at.date() == LATE_DAY and at.hour in LATE_HOURS


def exposed(moments: list[datetime]) -> str:
    """OpenMetrics of the server's samples at these moments."""
    families = {
        f'vllm:request_success_total{{{ENGINE},finished_reason="stop"}}': requests_by,
        f"vllm:generation_tokens_total{{{ENGINE}}}": lambda at: 100 * requests_by(at),
        f"vllm:prompt_tokens_total{{{ENGINE}}}": lambda at: 400 * requests_by(at),
        f"vllm:num_requests_running{{{ENGINE}}}": lambda at: 1 + at.hour % 3,
        f"vllm:num_requests_waiting{{{ENGINE}}}": lambda at: 0,
        f"vllm:kv_cache_usage_perc{{{ENGINE}}}": lambda at: 0.01 * (1 + at.hour % 3),
        f"up{{{TARGET}}}": lambda at: 1,
    }
    lines = [
        f"{series} {value(at)} {at.timestamp():.0f}"
        for series, value in families.items()
        for at in moments
    ]
    return "\n".join([*lines, "# EOF", ""])


NOTEBOOK = (
    'window: str = "vllm-sweep"\nprice: str = ""\nusd_per_hour: "Optional[float]" = None\n'
    'against: str = ""',
    "import vllm_capacity as vc\na = vc.open(window).analyze(price=price or usd_per_hour)\n"
    "vc.tables.title_line(a)",
    "vc.tables.tiles(a)",
    "vc.tables.comparison_verdict(a.compare(against)) if against else None",
)


@dataclass
class Nights:
    """A Prometheus that comes and goes at one address, and what is run against it."""

    folder: Path
    port: int
    runs: dict[datetime, Done]

    def at(self, day: date, hour: int = 6) -> Done:
        """The run of the morning of a day."""
        notebook = self.folder / "cost-report.ipynb"
        page = ReportOrder(notebook, {"usd_per_hour": 1.64}, self.folder / "reports")
        source = SourceSettings(origin=f"http://127.0.0.1:{self.port}")
        days = DaySettings(last="24h", windows=self.folder / "windows", keep="30d")
        now = midnight(day) + timedelta(hours=hour)
        order = Night.of(source, days, page, against="1d")
        done = night(order, now=now, environment={}, cache=self.folder)
        self.runs[now] = done
        return done

    @property
    def pages(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.folder / "reports").glob("*.html")}


def made(done: Done) -> list[str]:
    return [path.stem for path in done.pages]


@pytest.fixture(scope="module")
def nights(tmp_path_factory) -> Iterator[Nights]:
    folder = tmp_path_factory.mktemp("nights")
    cells = [nbformat.v4.new_markdown_cell("# A day")]
    cells += [nbformat.v4.new_code_cell(source) for source in NOTEBOOK]
    cells[1].metadata["tags"] = ["parameters"]
    book = nbformat.v4.new_notebook(
        cells=cells,
        metadata={
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
        },
    )
    nbformat.write(book, folder / "cost-report.ipynb")
    backfill(folder, exposed([at for at in scrapes() if not is_late(at)]))
    found = Nights(folder, free_port(), {})
    second, fourth, fifth, sixth, seventh = (DAYS[n] + timedelta(days=1) for n in (1, 3, 4, 5, 6))
    with real_prometheus(folder, [], port=found.port):
        found.at(DAYS[1])
        found.at(second)
        # Nobody ran on the third.
        found.at(fourth)
    backfill(folder, exposed([at for at in scrapes() if is_late(at)]))
    with real_prometheus(folder, [], port=found.port):
        found.at(fifth)
    found.at(sixth)
    with real_prometheus(folder, [], port=found.port):
        found.at(seventh)
        before = found.pages
        found.at(seventh, hour=7)
        assert found.pages == before, "a second run in one morning changes nothing"
    return found


@pytest.mark.parametrize(
    ("morning", "pages"),
    [
        pytest.param((3, 6), ["2026-11-02"], id="the first night"),
        pytest.param((4, 6), ["2026-11-03"], id="the day before was looked at again, in vain"),
        pytest.param((6, 6), ["2026-11-04", "2026-11-05"], id="the missed night is caught up"),
        pytest.param((7, 6), ["2026-11-05", "2026-11-06"], id="late data make their day anew"),
        pytest.param((8, 6), [], id="a dead source"),
        pytest.param((9, 6), ["2026-11-07", "2026-11-08"], id="and back again"),
        pytest.param((9, 7), [], id="nothing is left to do"),
    ],
)
def test_each_night_makes_the_pages_of_its_days(nights, morning, pages):
    day, hour = morning
    assert made(nights.runs[datetime(2026, 11, day, hour, tzinfo=UTC)]) == pages


def test_only_the_dead_source_is_a_failure(nights):
    failed = {now.day: done.failure for now, done in nights.runs.items() if done.failure}
    assert list(failed) == [8]
    assert isinstance(failed[8], SourceError)
    assert failed[8].exit_code == 3


def test_no_night_has_anything_else_to_say(nights):
    assert [now.day for now, done in nights.runs.items() if done.notes] == []


@pytest.mark.parametrize("day", DAYS, ids=str)
def test_a_day_holds_what_was_served_on_it_and_its_page_is_of_it(nights, day):
    window = open_window(nights.folder / "windows" / str(day))
    times = [at for at in scrapes() if at < midnight(day + timedelta(days=1))]
    before = [at for at in times if at.date() < day]
    served = requests_by(times[-1]) - (requests_by(before[-1]) if before else requests_by(times[0]))
    assert Analysis.of(window).answer.requests.finished == served
    held = window.sql(
        "select count(distinct ts) from samples where ts >= $midnight", midnight=midnight(day)
    )
    assert held.item() == len(times) - len(before)
    page = page_metadata(nights.folder / "reports" / f"{day}.html")
    assert page.line.window == str(day)
    assert page.line.start[:10] == str(day)


@pytest.mark.parametrize("day", DAYS, ids=str)
def test_each_page_is_compared_with_the_day_before(nights, day):
    page = (nights.folder / "reports" / f"{day}.html").read_text()
    earlier = day - timedelta(days=1)
    expected = [] if day == FIRST else [f"Compared with A, {earlier}, {earlier.day} Nov 2026"]
    assert re.findall(r"Compared with A, [\d-]+, \d+ Nov 2026", page) == expected


def test_the_index_lists_each_day_once(nights):
    index = (nights.folder / "reports" / "index.html").read_text()
    head = '<th scope="row" role="rowheader"><a href="{}.html"'
    assert [index.count(head.format(day)) for day in DAYS] == [1] * 7


def test_a_day_without_any_data_ends_with_one_line_and_code_2(tmp_path, nights):
    with real_prometheus(nights.folder, [], port=nights.port):
        source = SourceSettings(origin=f"http://127.0.0.1:{nights.port}")
        page = ReportOrder(nights.folder / "cost-report.ipynb", {}, tmp_path / "reports")
        order = Night.of(source, DaySettings(windows=tmp_path / "windows"), page)
        now = datetime(2026, 12, 2, 6, tzinfo=UTC)
        runs = [
            night(order, now=now + timedelta(hours=n), environment={}, cache=None) for n in (0, 1)
        ]
    with pytest.raises(NoTelemetryError, match="No telemetry for 2026-12-01") as told:
        missing_days(runs[0])
    assert told.value.exit_code == 2
    missing_days(runs[1])  # which was told already
