"""Seven simulated nights against a real Prometheus: one missed, one with a dead source, late data.

A gateway logs each day's use in a file, one of which comes late; the cloud's invoice is of the
first four days until it grows; alerts tell a real receiver once when cost is high, and when it is
over. The clock is an argument. What each day is to hold is known: a server made up here, whose
counters were backfilled. The pages are made by a notebook of a few cells, to be quick.
"""

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner

from tests.integration.real_prometheus import backfill, free_port, real_prometheus
from tests.live.serving import receiver
from vllm_capacity.analysis import Analysis
from vllm_capacity.cli import cli
from vllm_capacity.cli.nights import Done, Night, missing_days, night
from vllm_capacity.cli.options.extra_inputs import ExtraInputs
from vllm_capacity.cli.options.settings import (
    DaySettings,
    InvoiceSettings,
    SourceSettings,
    UsageSettings,
)
from vllm_capacity.errors import NoTelemetryError, SourceError
from vllm_capacity.render.report.metadata import page_metadata
from vllm_capacity.render.report.write import ReportOrder
from vllm_capacity.telemetry.window import open_window

FIRST = date(2026, 11, 2)
DAYS = tuple(FIRST + timedelta(days=n) for n in range(7))
EVERY = timedelta(minutes=5)
LATE_DAY = DAYS[3]
LATE_HOURS = range(12, 20)
LATE_LOG = DAYS[2]
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
    'against: str = ""\nusage: str = ""\ninvoice: str = ""',
    "import vllm_capacity as vc\na = vc.open(window).analyze(price=price or usd_per_hour)\n"
    "vc.tables.title_line(a)",
    "vc.tables.tiles(a)",
    "vc.tables.comparison_verdict(a.compare(against)) if against else None",
    "logs = vc.read_usage(usage) if usage else None\n"
    "vc.tables.tenants_by_log(a, logs) if logs else None",
    "vc.tables.invoice_by_file(a, invoice) if invoice else None",
    "vc.tables.kept_use(a)",
)


@dataclass
class Nights:
    """A Prometheus that is stopped and started at one address, and what runs against it."""

    folder: Path
    port: int
    receiver: str
    runs: dict[datetime, Done]
    alerts: dict[datetime, int]
    notified: list[str] = field(default_factory=list)

    def at(self, day: date, hour: int = 6) -> Done:
        """The run of the morning of a day."""
        notebook = self.folder / "cost-report.ipynb"
        page = ReportOrder(notebook, {"usd_per_hour": 1.64}, self.folder / "reports")
        source = SourceSettings(origin=f"http://127.0.0.1:{self.port}")
        days = DaySettings(last="24h", windows=self.folder / "windows", keep="30d")
        now = midnight(day) + timedelta(hours=hour)
        extra = ExtraInputs(
            UsageSettings(files=(self.folder / "logs" / "spend-{day}.csv",)),
            InvoiceSettings(self.folder / "invoice.csv"),
        )
        order = Night.of(source, days, page, against="1d", extra=extra)
        done = night(order, now=now, environment={}, cache=self.folder)
        self.runs[now] = done
        record = self.folder / "sent.json"
        words = ["alerts", "--windows", str(self.folder / "windows"), "--over", "all"]
        words += ["--usd-per-hour", "1.64", "--above", "cost=30"]
        words += ["--notify", self.receiver, "--sent", str(record)]
        self.alerts[now] = CliRunner().invoke(cli, words).exit_code
        return done

    def log_use(self, *days: date) -> None:
        """The gateway writes down the use of these days: two teams, three to one."""
        (self.folder / "logs").mkdir(exist_ok=True)
        for day in days:
            rows = [
                (f"team-{'a' if n % 4 else 'b'}", at.isoformat(), 400, 100)
                for n, at in enumerate(each for each in scrapes() if each.date() == day)
            ]
            lines = ["key,end,prompt_tokens,output_tokens"]
            lines += [",".join(map(str, row)) for row in rows]
            (self.folder / "logs" / f"spend-{day}.csv").write_text("\n".join(lines))

    def charge(self, *days: date) -> None:
        """The cloud charges a dollar more than the price for each of these days."""
        lines = ["date,hours,cost", *(f"{day},24,{24 * 1.64 + 1}" for day in days)]
        (self.folder / "invoice.csv").write_text("\n".join(lines))

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
    with receiver() as (url, got):
        yield _seven(Nights(folder, free_port(), url, {}, {}), got)


def _seven(found: Nights, got: list[dict]) -> Nights:
    folder = found.folder
    second, fourth, fifth, sixth, seventh = (DAYS[n] + timedelta(days=1) for n in (1, 3, 4, 5, 6))
    found.log_use(*(day for day in DAYS if day != LATE_LOG))
    found.charge(*DAYS[:2])
    with real_prometheus(folder, [], port=found.port):
        found.at(DAYS[1])
        found.at(second)
        # No run on the third day.
        found.charge(*DAYS[:4])
        found.at(fourth)
    backfill(folder, exposed([at for at in scrapes() if is_late(at)]))
    found.log_use(LATE_LOG)
    with real_prometheus(folder, [], port=found.port):
        found.at(fifth)
    found.at(sixth)
    found.charge(*DAYS)
    with real_prometheus(folder, [], port=found.port):
        found.at(seventh)
        before = found.pages
        found.at(seventh, hour=7)
        assert found.pages == before, "a second run in one morning changes nothing"
    found.notified += [each["title"] for each in got]
    return found


@pytest.mark.parametrize(
    ("morning", "pages"),
    [
        pytest.param((3, 6), ["2026-11-02"], id="the first night"),
        pytest.param((4, 6), ["2026-11-03"], id="the day before was looked at again, in vain"),
        pytest.param((6, 6), ["2026-11-04", "2026-11-05"], id="the missed night is caught up"),
        pytest.param(
            (7, 6),
            ["2026-11-04", "2026-11-05", "2026-11-06"],
            id="a late log and late data make their days anew",
        ),
        pytest.param((8, 6), [], id="a dead source"),
        pytest.param(
            (9, 6),
            ["2026-11-06", "2026-11-07", "2026-11-08"],
            id="and back again; the invoice has grown by three days",
        ),
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


def test_a_missing_log_gives_one_line_of_error(nights):
    notes = {now.day: done.notes for now, done in nights.runs.items() if done.notes}
    log = nights.folder / "logs" / f"spend-{LATE_LOG}.csv"
    line = f"{LATE_LOG}: There is no log of use {log}: the report is made without it."
    assert notes == {6: (line,)}


@pytest.mark.parametrize("day", DAYS, ids=str)
def test_each_page_has_the_shares_of_its_day(nights, day):
    page = (nights.folder / "reports" / f"{day}.html").read_text()
    rows = len([at for at in scrapes() if at.date() == day])
    counts = re.findall(r"<td[^>]*>(\d+)</td>", page.partition("Cost by tenant")[2])
    assert "Cost by tenant" in page
    assert {str(rows * 3 // 4), str(rows // 4)} <= set(counts[:20])


@pytest.mark.parametrize("day", DAYS, ids=str)
def test_each_page_is_reconciled_with_the_invoice(nights, day):
    page = (nights.folder / "reports" / f"{day}.html").read_text()
    assert "The cloud's invoice (invoice.csv)" in page.replace("&#39;", "'")
    assert "$1.68 per hour charged, $1.64 billed" in page


def test_the_alert_fires_while_cost_is_high_and_notifies_once(nights):
    """Up to $39 per million output tokens on the fourth, at most $27 from the fifth on."""
    assert [nights.alerts[now] for now in sorted(nights.alerts)] == [1, 1, 0, 0, 0, 0, 0]
    assert nights.notified == ["vLLM: 1 firing", "vLLM: 1 resolved"]


def test_the_bills_of_seven_nights_are_one_focus_file(nights):
    words = ["export", str(nights.folder / "reports"), "--to", "focus"]
    done = CliRunner().invoke(cli, words, catch_exceptions=False)
    charged = [float(row["BilledCost"]) for row in csv.DictReader(io.StringIO(done.stdout))]
    bills = [
        page_metadata(nights.folder / "reports" / f"{day}.html").use.as_paid.whole.total.mid
        for day in DAYS
    ]
    assert sum(charged) == pytest.approx(sum(bills), abs=0.005)
    assert done.stderr == ""


@pytest.mark.parametrize("day", DAYS, ids=str)
def test_a_daily_window_and_its_page_cover_exactly_that_day(nights, day):
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
    with pytest.raises(NoTelemetryError, match="No telemetry for 2026-12-01") as record:
        missing_days(runs[0])
    assert record.value.exit_code == 2
    missing_days(runs[1])  # reported already, so it does not raise
