"""The small charts of the index: which reports make a series, and what each chart draws."""

from pathlib import Path

import msgspec
import pytest
from bs4 import BeautifulSoup

from vllm_capacity.render.report import page as html
from vllm_capacity.render.report.metadata import Metadata
from vllm_capacity.render.report.previous import series_of_reports
from vllm_capacity.render.report.trends import HEIGHT, WIDTH, series_trends
from vllm_capacity.render.report.write import write_index

RATES = {"rates": [[1.0, 2.0, 2.0, 2.0]]}
DEARER = {"rates": [[1.0, 3.0, 3.0, 3.0]]}


def report(day: int, cost: float | None = 1.0, *, model="m", server="s", terms=RATES, **ends):
    line = {
        "window": f"day-{day}",
        "models": [model],
        "engines": "1 engine",
        "span": "then",
        "start": f"2026-01-{day:02}T00:00:00Z",
        "end": f"2026-01-{day + 1:02}T00:00:00Z",
        "hours": "24 h",
        "price": "given",
        "is_simulated": False,
        "servers": [server],
        "terms": terms,
    }
    tile = {
        "figure": "usd_per_request",
        "label": "Cost per request",
        "value": f"${cost}",
        "mid": cost,
        "hangs_on": "rates",
        **({"low": cost, "high": cost} if cost is not None else {}),
        **ends,
    }
    return msgspec.convert({"title": "Q?", "line": line, "tiles": [tile]}, Metadata)


def named(*reports):
    return {each.line.window: each for each in reports}


@pytest.mark.parametrize(
    ("reports", "series"),
    [
        pytest.param([], [], id="no report"),
        pytest.param([report(1)], [["day-1"]], id="one alone"),
        pytest.param([report(2), report(1)], [["day-1", "day-2"]], id="oldest first"),
        pytest.param(
            [report(1), report(3), report(2, model="x")],
            [["day-1", "day-3"], ["day-2"]],
            id="another model is another series",
        ),
        pytest.param(
            [report(1), report(2, server="t")],
            [["day-2"], ["day-1"]],
            id="so are other servers; the latest first",
        ),
    ],
)
def test_report_follows_the_one_it_is_compared_with(reports, series):
    found = series_of_reports(named(*reports))
    assert [[name for name, _ in each] for each in found] == series


def trends(*reports):
    found = series_trends(list(named(*reports).items()))
    return found[0].trends if found else ()


@pytest.mark.parametrize(
    ("reports", "drawn"),
    [
        pytest.param([report(1)], 0, id="one report has no trend"),
        pytest.param([report(1), report(2)], 1, id="two have one"),
        pytest.param([report(1), report(2, None)], 0, id="unless only one knows the figure"),
        pytest.param([report(1), report(2, None, high=2.0)], 1, id="a bound is drawn at its end"),
    ],
)
def test_trend_takes_two_reports_that_know_the_figure(reports, drawn):
    assert len(trends(*reports)) == drawn


def test_points_lie_between_zero_and_the_most_in_the_picture():
    points = trends(report(1, 4.0), report(2, 2.0), report(3, 0.0))[0].points
    assert [point.y for point in points] == [5.0, HEIGHT / 2, HEIGHT - 5]
    assert [point.x for point in points] == [5.0, WIDTH / 2, WIDTH - 5]


def test_line_breaks_where_the_price_changed():
    reports = [report(1), report(2), report(3, terms=DEARER), report(4, terms=DEARER)]
    assert [line.count(",") for line in trends(*reports)[0].lines] == [2, 2]


def test_trend_has_the_first_and_the_last_value():
    found = trends(report(1, 4.0), report(2, 9.0), report(3, 2.0))[0]
    assert (found.first, found.last) == ("$4.0", "$2.0")


def test_index_draws_each_series_with_a_link_per_report(tmp_path: Path):
    for each in (report(1), report(2)):
        page = html.page_html(
            title="Q?", sections=[], runtime="", metadata=each, command="", made=""
        )
        (tmp_path / f"{each.line.window}.html").write_text(page, encoding="utf-8")
    soup = BeautifulSoup(write_index(tmp_path).read_text(), "html.parser")
    links = [link["href"] for link in soup.select("figure.trend svg a")]
    assert (len(soup.select("section.series")), links) == (1, ["day-1.html", "day-2.html"])
    assert len(soup.select(".report")) == 2
