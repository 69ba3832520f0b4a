"""The engines of a fleet in one list: who served what, who is worst."""

import pytest

from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.latency import Quantile
from vllm_capacity.verdicts.cost.bill import CostShare, Usage, bill
from vllm_capacity.verdicts.fleet import EngineRow, engine_rows, model_rows
from vllm_capacity.verdicts.saturation.regimes import CLIENT, KV

PRICE = Estimate.exact(2.0)


def rows(tokens, capacity=100.0, ttft=None):
    """The rows of engines that generated so many tokens in an hour each, without a fit."""
    parts = {
        name: CostShare(
            Usage(
                billed_hours=1.0,
                successful_requests=1.0,
                prompt_tokens=1.0,
                generation_tokens=count,
                output_tokens_per_second=None if count is None else count / 3600,
            ),
            PRICE,
            Estimate.exact(capacity),
        )
        for name, count in tokens.items()
    }
    return engine_rows(bill(parts), parts, (), ttft or {})


def test_without_an_engine_there_are_no_rows():
    assert rows({}) == ()


@pytest.mark.parametrize(
    ("tokens", "shares"),
    [
        pytest.param({"a": 300_000.0, "b": 100_000.0}, {"a": 0.75, "b": 0.25}, id="of all tokens"),
        pytest.param({"a": 300_000.0, "b": 0.0}, {"a": 1.0, "b": 0.0}, id="one was idle"),
        pytest.param({"a": 0.0, "b": 0.0}, {"a": None, "b": None}, id="none came"),
        pytest.param({"a": 300_000.0, "b": None}, {"a": None, "b": None}, id="one not counted"),
    ],
)
def test_share_of_the_tokens_that_all_generated(tokens, shares):
    assert {row.engine: row.token_share_ratio for row in rows(tokens)} == shares


def test_engine_whose_idle_time_cost_most_is_first():
    found = rows({"busy": 300_000.0, "idle": 0.0, "half": 150_000.0})
    assert [row.engine for row in found] == ["idle", "half", "busy"]


def test_engine_without_a_first_token_has_no_ttft_and_without_a_fit_no_limit():
    observed = Quantile(1.0, 0.5, 2.0, 0.9)
    first, second = sorted(rows({"a": 1.0, "b": 1.0}, ttft={"a": observed}), key=lambda r: r.engine)
    assert (first.ttft_p95, second.ttft_p95, second.limit, second.is_limited) == (
        observed,
        Quantile(),
        "unknown",
        False,
    )


def shares(tokens):
    return {
        name: CostShare(
            Usage(1.0, 1.0, 1.0, count, output_tokens_per_second=count / 3600), PRICE, CAN
        )
        for name, count in tokens.items()
    }


CAN = Estimate.exact(100.0)
FULL, FREE = (
    EngineRow(name, PRICE, PRICE, 0.5, Estimate.exact(0.5), Quantile(), limit)
    for name, limit in (("full", KV), ("free", CLIENT))
)


def rows_of(tokens, engines):
    parts = shares(tokens)
    own = {name: {name: part} for name, part in parts.items()}
    return model_rows(bill(parts, noun="models"), own, engines, {})


@pytest.mark.parametrize(
    ("tokens", "engines", "order"),
    [
        pytest.param({}, {}, [], id="no model, no rows"),
        pytest.param({"a": 9.0, "b": 1.0}, {}, ["b", "a"], id="the more idle one first"),
        pytest.param(
            {"a": 9.0, "b": 1.0}, {"a": [FULL, FREE], "b": [FREE]}, ["a", "b"], id="a limit first"
        ),
    ],
)
def test_worst_model_is_first(tokens, engines, order):
    assert [row.model for row in rows_of(tokens, engines)] == order


def test_bills_of_the_models_add_up_and_their_shares_are_whole():
    rows = rows_of({"a": 300.0, "b": 100.0}, {"a": [FULL, FREE]})
    assert [row.token_share_ratio for row in rows] == [0.75, 0.25]
    assert sum(row.costs.allocation_usd.mid for row in rows) == 4.0
    assert [len(row.limited) for row in rows] == [1, 0]
