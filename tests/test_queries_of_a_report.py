"""A report asks DuckDB each question once, and few of them."""

from __future__ import annotations

from collections import Counter
from inspect import signature

import polars as pl
import pytest
from msgspec import field

from vllm_capacity import api, charts, tables
from vllm_capacity.assumptions import Assumptions, Slo, pricing
from vllm_capacity.telemetry.window import Answers, Window, open_window

_MAX = 30


class Counted(Window, frozen=True):
    """A window that keeps every query it is asked."""

    asked: list[tuple[str, str]] = field(default_factory=list)

    def sql(self, query: str, **params: object) -> pl.DataFrame:
        """The answer; the query is kept."""
        self.asked.append((query, repr(sorted(params.items()))))
        return super().sql(query, **params)


@pytest.fixture(scope="module")
def asked():
    opened = open_window("vllm-sweep")
    # Without cached answers its few rows would answer, not SQL.
    window = Counted(**{**opened.fields, "answers": Answers()})
    analysis = api.Analysis(
        window, window.extent, Assumptions(pricing(1.64), Slo(ttft_p95_seconds=2.0))
    )
    plan = analysis.plan(gpu="A100-80GB-PCIe", model="openai/gpt-oss-20b")
    for draw in charts.CHARTS.values():
        draws = signature(draw).parameters
        draw(*(each for each in (analysis, plan) if type(each).__name__.lower() in draws))
    for name in ("title_line", "tiles", "verdict", "quality_table", "cost_table", "other_prices"):
        getattr(tables, name)(analysis)
    for name in ("slo_table", "latency_table", "failure_table", "definitions", "provenance"):
        getattr(tables, name)(analysis)
    tables.forecast_table(plan)
    return window.asked


def test_no_query_is_asked_twice(asked):
    assert [query for query, times in Counter(asked).items() if times > 1] == []


def test_queries_are_few(asked):
    assert 10 < len(asked) <= _MAX
