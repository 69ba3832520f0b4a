"""From every tile of the page to its definition, its SQL and its rows, and back to its figure.

Nothing is taken from the package but the page: the SQL text and what is bound to it are read off
its HTML, asked of the window, and the figure is worked out again by hand.
"""

import json
import re
from datetime import datetime
from inspect import signature

import polars as pl
import pytest
from bs4 import BeautifulSoup

from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, Slo, pricing
from vllm_capacity.plan import plan
from vllm_capacity.render.charts import CHARTS
from vllm_capacity.render.report import page as html
from vllm_capacity.render.report.metadata import Metadata, SummaryLine
from vllm_capacity.render.sections.glossary import DEFINITIONS
from vllm_capacity.render.sections.header import definitions, tiles
from vllm_capacity.telemetry.window import open_window

USD_PER_HOUR, TTFT_TARGET = 0.1, 2.5
STEP_SECONDS = 10


@pytest.fixture(scope="module")
def analysis(examples):
    assumed = Assumptions(pricing(USD_PER_HOUR), Slo(TTFT_TARGET))
    return Analysis.of(open_window(examples / "vllm-sweep"), assumptions=assumed)


@pytest.fixture(scope="module")
def page(analysis):
    outputs = [
        {"output_type": "display_data", "data": element._repr_mimebundle_(), "metadata": {}}
        for element in (tiles(analysis), definitions(analysis))
    ]
    cell = {"cell_type": "code", "source": "", "outputs": outputs}
    made = html.page_html(
        title="",
        sections=html.sections_of([cell]),
        runtime="",
        metadata=Metadata(SummaryLine()),
        command="",
        made="",
    )
    return BeautifulSoup(made, "html.parser")


@pytest.fixture(scope="module")
def rows_of(analysis, page):
    """The frames behind a tile, by query name: queried with the parameters shown on the page."""

    def rows(figure: str) -> dict[str, pl.DataFrame]:
        link = page.select_one(f'.tile[data-figure="{figure}"] a')["href"]
        found = {}
        for behind in page.select(f"{link} .rows"):
            text = page.select_one(behind.select_one("p a")["href"]).select_one("code").get_text()
            bound = json.loads(behind["data-bound"])
            for name in {"start", "end"} & set(bound):
                bound[name] = datetime.fromisoformat(bound[name])
            found[behind["data-query"]] = analysis.window.sql(text, **bound)
        return found

    return rows


def billed_hours(rows):
    times = rows["attempts"]["ts"]
    return (times.max() - times.min()).total_seconds() / 3600


def bill(rows):
    return billed_hours(rows) * rows["engines"].height * USD_PER_HOUR


def increase(rows):
    return rows["counter_increase"]["increase"].sum()


def output_rate(rows):
    grown = rows["counter_increase"]
    return increase(rows) / (grown["last_ts"].max() - grown["base_ts"].min()).total_seconds()


def capacity(rows):
    """Mean output of the ten-second steps in which requests waited and the KV cache was full."""
    gauges = rows["gauge_samples"]
    start = gauges["ts"].min()
    step = pl.col("ts").sub(start).dt.total_seconds().floordiv(STEP_SECONDS).alias("step")
    value = pl.col("value")
    kv, waiting = (
        pl.col("metric") == f"vllm:{name}"
        for name in ("kv_cache_usage_perc", "num_requests_waiting")
    )
    full = (
        gauges.group_by(step)
        .agg(
            kv=value.filter(kv).mean(),
            peak=value.filter(kv).max(),
            waiting=value.filter(waiting).mean(),
        )
        .filter((pl.col("kv") >= 0.75) & (pl.col("peak") >= 0.9) & (pl.col("waiting") > 0))
    )
    grown = rows["scrape_increases"].filter(pl.col("metric") == "vllm:generation_tokens_total")
    rate = grown.group_by(step).agg(
        rate=pl.col("increase").sum()
        / (pl.col("ts") - pl.col("ts_before")).sum().dt.total_seconds(fractional=True)
    )
    return rate.join(full, on="step")["rate"].mean()


def within_target(rows):
    state = rows["histogram_states"].row(0, named=True)
    grown = [b - a for a, b in zip(state["first_counts"], state["counts"], strict=True)]
    place = state["bounds"].index(TTFT_TARGET)
    return sum(grown[: place + 1]) / sum(grown)


def successful(rows):
    ended = rows["counter_increase"].with_columns(
        reason=pl.col("labels").str.json_path_match("$.finished_reason")
    )
    return ended.filter(pl.col("reason").is_in(["stop", "length", "repetition"]))["increase"].sum()


BY_HAND = {
    "usd_per_request": lambda rows: bill(rows) / successful(rows) * 1000,  # shown per thousand
    "usd_per_million_output_tokens": lambda rows: bill(rows) / increase(rows) * 1e6,
    "tokens_per_usd": lambda rows: increase(rows) / bill(rows),
    "utilization": lambda rows: output_rate(rows) / capacity(rows) * 100,
    "headroom_ratio": lambda rows: (1 - output_rate(rows) / capacity(rows)) * 100,
    "ttft_attainment": lambda rows: within_target(rows) * 100,
    "allocation_usd": bill,
    "usd_per_month": lambda rows: bill(rows) / billed_hours(rows) * 730.5,
}
FITTED = {"slo_headroom_ratio"}
"""Tiles based on a fitted curve, which a few lines cannot compute."""


@pytest.mark.parametrize("figure", BY_HAND)
def test_tile_can_be_worked_out_from_its_rows(page, rows_of, figure):
    tile = page.select_one(f'.tile[data-figure="{figure}"] .value')
    shown = float(re.sub(r"[^\d.]", "", tile.find(string=True, recursive=False)))
    # Capacity is estimated here from plain steps, so figures that use it agree to a few percent.
    tolerance = 0.03 if figure in ("utilization", "headroom_ratio") else 0.005
    assert shown == pytest.approx(BY_HAND[figure](rows_of(figure)), rel=tolerance)


def test_every_tile_is_worked_out_here(page):
    assert {tile["data-figure"] for tile in page.select(".tile")} == set(BY_HAND) | FITTED


def test_every_link_leads_to_a_place_on_the_page(page):
    links = {link["href"] for link in page.select("a[href^='#how-'], a[href^='#sql-']")}
    assert [link for link in links if page.select_one(link) is None] == []


@pytest.fixture(scope="module")
def drawn_from(analysis):
    """What a chart may be drawn from, by the name of its argument."""
    return {"analysis": analysis, "plan": plan(analysis)}


@pytest.mark.parametrize("draw", CHARTS.values(), ids=CHARTS)
def test_chart_links_to_a_definition(drawn_from, draw):
    names = [name for name in signature(draw).parameters if name in drawn_from]
    notes = draw(*(drawn_from[name] for name in names)).to_dict()["usermeta"]["vllm_capacity"]
    assert notes["definition"] in {each.figure for each in DEFINITIONS}


def test_rows_shown_are_counted(page):
    for behind in page.select(".rows"):
        output = int(re.match(r"[\s]*([\d,]+) rows?", behind.p.get_text())[1].replace(",", ""))
        assert len(behind.select("tbody tr")) == min(output, 8)


def test_hours_cost_together_what_the_window_cost(analysis):
    whole, parts = analysis.answer, analysis.costs
    assert (parts["allocation_usd"].sum(), parts["successful_requests"].sum()) == (
        pytest.approx(whole.cost.total.mid, rel=1e-9),
        whole.requests.successful,
    )
