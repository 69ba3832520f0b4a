"""The page in a real Chromium with the network cut, at the widths and in the modes people use."""

import re
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import polars as pl
import pytest
from msgspec.structs import replace

from tests.long_window import long_window
from vllm_capacity.render.report.pdf import find_browser, print_pdf
from vllm_capacity.render.report.write import ReportOrder, write_report
from vllm_capacity.resources import shipped
from vllm_capacity.sources.exposition import provenance
from vllm_capacity.telemetry.late import stored_rows
from vllm_capacity.telemetry.store import write_window

pytestmark = pytest.mark.browser

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>" + "ab_" * 84
WIDTHS = (390, 1000, 1600)
A4_WIDTH = 702  # 210 mm less two margins of 12 mm, at 96 dots an inch


def report(folder: Path, **parameters: object) -> Path:
    notebook = shipped("notebooks/cost-report.ipynb")
    order = ReportOrder(notebook, parameters, folder)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    return write_report(order, made_at=at, cache=None, progress=lambda done, total: None)


@pytest.fixture(scope="module")
def page_path(tmp_path_factory) -> Path:
    return report(tmp_path_factory.mktemp("reports"))


class Opened:
    """A page opened from its file with the network cut, drawn, with all it said and asked for."""

    def __init__(self, browser, path: Path, *, width: int = 1000) -> None:
        self.context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme="light",
            offline=True,
            timezone_id="America/New_York",
        )
        self.page = self.context.new_page()
        self.output: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.output.append(message.text))
        self.page.on("pageerror", lambda error: self.output.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.output.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-drawn=all]", state="attached", timeout=90_000)

    def __enter__(self) -> "Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()


@pytest.fixture(scope="module")
def opened(chromium):
    """A page by its path and width, opened once for all tests that leave it as it was."""
    with ExitStack() as stack:
        yield cache(
            lambda path, width=1000: stack.enter_context(Opened(chromium, path, width=width))
        )


def test_page_asks_for_itself_alone_and_says_nothing(opened, page_path):
    view = opened(page_path)
    assert (view.asked, view.output) == ([page_path.as_uri()], [])


def test_every_chart_is_drawn_with_marks(opened, page_path):
    sizes = opened(page_path).page.eval_on_selector_all(
        ".live[data-chart]",
        """boxes => boxes.map(box => {
            const svg = box.querySelector("svg");
            const marks = box.querySelectorAll(
                ".mark-line path, .mark-area path, .mark-rect path, .mark-symbol path");
            const seen = [...marks].filter(mark => mark.getBoundingClientRect().width > 0);
            return [svg.getBoundingClientRect().width > 300, seen.length > 0];
        })""",
    )
    assert (len(sizes) >= 12, all(width and marks for width, marks in sizes)) == (True, True)


def test_no_static_image_is_shown_beside_its_live_chart(opened, page_path):
    assert opened(page_path).page.locator(".still:visible").count() == 0


def test_pointer_brings_a_tooltip_with_the_time_in_utc(opened, page_path):
    page = opened(page_path).page
    figure = page.locator("figure", has_text="Did requests queue?")
    figure.scroll_into_view_if_needed()
    box = figure.locator(".live svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for(timeout=10_000)
    text = tip.inner_text()
    page.mouse.move(0, 0)
    tip.wait_for(state="detached", timeout=10_000)
    assert ("time (UTC)" in text, "24 Nov 04:1" in text, "waiting" in text) == (True, True, True)


@contextmanager
def in_scheme(view, scheme):
    """The page in light or dark: style sheets alone know of it, so that nothing is drawn again."""
    view.page.emulate_media(color_scheme=scheme)
    yield view.page
    view.page.emulate_media(color_scheme="light")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_reaches_beyond_the_page(opened, page_path, width, scheme):
    with in_scheme(opened(page_path, width), scheme) as page:
        wide = page.evaluate("document.documentElement.scrollWidth")
        cut = page.eval_on_selector_all(
            "h1, h2, h3, .value, .verdict p, .live svg text",
            """(all, width) => all.filter(each => {
                const box = each.getBoundingClientRect();
                return box.width && (box.left < -1 || box.right > width + 1);
            }).map(each => each.textContent)""",
            width,
        )
    assert (wide, cut) == (width, [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(opened, page_path, scheme):
    with in_scheme(opened(page_path), scheme) as page:
        colours = page.evaluate(
            """() => {
                const at = name => getComputedStyle(document.documentElement)
                    .getPropertyValue(name).trim();
                const names = ["paper", "ink", "soft", "link", "load", "limit", "cost", "kv"];
                return names.map(name => "--" + name)
                    .map(name => [name, at(name)]);
            }"""
        )
    named = dict(colours)
    ratios = {name: _contrast(named["--paper"], colour) for name, colour in named.items()}
    weak = [name for name in ("--ink", "--soft", "--link") if ratios[name] < 4.5]
    weak += [name for name in ("--load", "--limit", "--cost", "--kv") if ratios[name] < 3.0]
    assert weak == []


def printed_pages(pdf: bytes) -> int:
    return len(re.findall(rb"/Type\s*/Page\b", pdf))


@pytest.fixture(scope="module")
def on_paper(opened, page_path):
    """The page as wide as A4 leaves it room."""
    return opened(page_path, A4_WIDTH).page


@contextmanager
def printed(page, *, with_appendix):
    """The page while it is printed, with the class of its body that `--appendix` gives it."""
    page.emulate_media(media="print")
    page.evaluate("is => document.body.classList.toggle('with-appendix', is)", with_appendix)
    page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    yield page
    page.evaluate("window.dispatchEvent(new Event('afterprint'))")


def test_printed_page_is_the_answer_and_its_charts(on_paper):
    with printed(on_paper, with_appendix=False) as page:
        live = page.locator(".live:visible").count()
        stills = page.locator(".still:visible").count()
        appendix = page.locator(".fold:visible, .definition:visible").count()
        pages = printed_pages(page.pdf(format="A4"))
    assert (live, stills >= 12, appendix, pages <= 8) == (0, True, 0, True)


def test_appendix_is_printed_on_request_with_open_folds(on_paper):
    with printed(on_paper, with_appendix=True) as page:
        folds = page.locator(".fold:visible").count()
        shut = page.locator("details:not([open]):not(.long)").count()
        pages = printed_pages(page.pdf(format="A4"))
    assert (folds >= 12, shut, pages > 8) == (True, 0, True)


@pytest.mark.parametrize("with_appendix", [False, True])
def test_printed_page_cuts_no_table(on_paper, with_appendix):
    with printed(on_paper, with_appendix=with_appendix) as page:
        cut = page.eval_on_selector_all(
            "table, .still svg, pre",
            """(all, width) => all.filter(each => each.getBoundingClientRect().right > width + 1)
                .map(each => each.textContent.slice(0, 60))""",
            A4_WIDTH,
        )
    assert cut == []


def test_pdf_is_printed_by_the_browser_of_the_machine(page_path, tmp_path):
    path = tmp_path / "page.html"
    path.write_bytes(page_path.read_bytes())
    printed = print_pdf(path, find_browser()).read_bytes()
    assert (printed[:5], 2 <= printed_pages(printed) <= 8) == (b"%PDF-", True)


def test_no_table_is_wider_than_a_phone_where_it_ends_in_words(opened, page_path):
    cut = opened(page_path, 390).page.eval_on_selector_all(
        ".wordy",
        """all => {
            const folds = [...document.querySelectorAll("details:not([open])")];
            folds.forEach(fold => { fold.open = true; });
            const cut = all.filter(each => each.getBoundingClientRect().right > 391).length;
            folds.forEach(fold => { fold.open = false; });
            return cut;
        }""",
    )
    assert cut == 0


@pytest.mark.parametrize(("width", "rows"), [(390, 6), (1000, 3), (1600, 3)])
def test_charts_against_load_stand_in_pairs_where_there_is_room(opened, page_path, width, rows):
    tops = opened(page_path, width).page.eval_on_selector_all(
        ".half", "all => all.map(each => Math.round(each.getBoundingClientRect().top))"
    )
    assert (len(tops), len(set(tops))) == (6, rows)


def test_page_without_scripts_shows_static_images(chromium, page_path):
    context = chromium.new_context(java_script_enabled=False, offline=True)
    page = context.new_page()
    page.goto(page_path.as_uri())
    shown = page.locator(".still svg:visible").count()
    context.close()
    assert shown >= 12


@pytest.fixture(scope="module")
def replicas_page(tmp_path_factory) -> Path:
    """The report of two engines whose model is called something long and nasty."""
    rows = stored_rows(shipped("data/examples") / "vllm-two-replicas")
    series = rows.series.with_columns(
        model_name=pl.when(pl.col("model_name").is_not_null()).then(pl.lit(HOSTILE))
    )
    folder = tmp_path_factory.mktemp("replicas")
    note = provenance(rows, kind="saved scrapes", origin=HOSTILE)
    window = write_window(folder / "window", replace(rows, series=series), note)
    priced = {"usd_per_hour": "2", "price_note": "made up"}
    return report(folder / "reports", window=str(window), by="instance", **priced)


def test_head_of_the_engine_table_sorts_it(opened, replicas_page):
    view = opened(replicas_page, 1280)
    names = view.page.locator("table[data-sortable]").first.locator("tbody td:first-child")
    head = view.page.locator("table[data-sortable] th button").first
    orders = [names.all_text_contents()]
    for _ in range(2):
        head.click()
        orders.append(names.all_text_contents())
    assert (orders[1:], view.output) == ([["r0", "r1"], ["r1", "r0"]], [])


def test_tables_of_engines_and_labels_show_every_column(opened, replicas_page):
    """Heads of numbers take several lines rather than push the last columns out of sight."""
    found = opened(replicas_page, 1280).page.evaluate(
        """() => {
            const heads = [...document.querySelectorAll("table[data-sortable] th.n button")];
            const texts = heads.map(each => each.textContent);
            heads.forEach(each => { each.textContent = "per million output tokens"; });
            const tables = [...document.querySelectorAll("table[data-sortable]")];
            const beyond = tables.map(each => each.scrollWidth - each.parentElement.clientWidth);
            heads.forEach((each, n) => { each.textContent = texts[n]; });
            return beyond;
        }"""
    )
    assert found
    assert max(found) <= 0


def test_a_table_by_a_label_adds_up_to_the_whole(opened, replicas_page):
    page = opened(replicas_page, 1280).page
    head = page.locator("th", has_text="prompt tokens")
    rows = page.locator("table", has=head).first.locator("tbody tr").all()
    cells = [row.locator("th, td").all_text_contents() for row in rows]
    counts = {name: int(count.replace(",", "")) for name, count, *_ in cells}
    assert list(counts) == ["r0", "r1", "total"]
    assert counts["r0"] + counts["r1"] == counts["total"]


@pytest.fixture(scope="module")
def index(chromium, replicas_page):
    """The index of the reports, opened: it has no script, so that a resize is all."""
    context = chromium.new_context(offline=True)
    page = context.new_page()
    page.goto((replicas_page.parent / "index.html").as_uri())
    yield page
    context.close()


@pytest.mark.parametrize("width", [390, 1200, 1600])
def test_index_is_as_wide_as_the_window_allows(index, width):
    index.set_viewport_size({"width": width, "height": 900})
    wide = index.locator("main").bounding_box()["width"]
    scrolls = index.evaluate("document.documentElement.scrollWidth")
    assert (wide > min(width, 960) - 40, scrolls) == (True, width)


def test_link_of_a_tile_opens_its_definition(opened, replicas_page):
    page = opened(replicas_page, 1280).page
    page.locator(".tile a[href='#how-usd_per_request']").click()
    shown = page.locator("#how-usd_per_request")
    assert (shown.get_attribute("open"), shown.locator("p").first.is_visible()) == ("", True)


@pytest.mark.parametrize("width", [390, 1600])
def test_nasty_model_name_is_text_and_fits(chromium, replicas_page, width):
    with Opened(chromium, replicas_page, width=width) as view:
        wide = view.page.evaluate("document.documentElement.scrollWidth")
        images = view.page.locator("img").count()
        named = HOSTILE in view.page.locator(".titleline").text_content()
    assert (view.output, images, named, wide) == ([], 0, True, width)


def _contrast(one: str, other: str) -> float:
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, as WCAG defines it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_charts_and_tooltips_of_a_page_in_a_zone_are_local(chromium, tmp_path):
    long_window(tmp_path / "days", days=2, start=datetime(2026, 10, 24, tzinfo=UTC))
    zone = {"window": str(tmp_path / "days"), "time_zone": "Europe/Berlin"}
    with Opened(chromium, report(tmp_path, **zone)) as view:
        figure = view.page.locator("figure", has_text="Did requests queue?")
        labels = figure.locator(".live .role-axis-label text").all_text_contents()
        figure.scroll_into_view_if_needed()
        box = figure.locator(".live svg").bounding_box()
        view.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] * 0.5)
        view.page.mouse.move(box["x"] + box["width"] * 0.9, box["y"] + box["height"] * 0.5)
        tip = view.page.locator("#vg-tooltip-element.visible")
        tip.wait_for(timeout=10_000)
        text = tip.inner_text()
    times = [label for label in labels if not label.isdigit()]
    assert times == ["12:00", "25 Oct", "12:00", "26 Oct"]
    assert "time (Europe/Berlin)" in text
    # 10 requests run from 18:00 to 19:00 UTC, which is 19:00 in Berlin after the change to UTC+1.
    assert re.search(r"25 Oct 19:[03]0:00\s+running\s+10\.", text), text
    assert view.output == []
