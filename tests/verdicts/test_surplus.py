"""How many replicas can be removed: never more than the busiest time allows."""

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from vllm_capacity.estimate import Estimate
from vllm_capacity.render.sections.plan import replay_sentences, surplus_text
from vllm_capacity.verdicts.replay import Replay
from vllm_capacity.verdicts.sizing import (
    QUARTER_SECONDS,
    BusyTime,
    Policy,
    Pool,
    busiest,
    one_of,
    surplus,
)

T0 = datetime(2026, 11, 24, tzinfo=UTC)
KNOWN = Estimate.known(90, 100, 110, "held")
LEAST = Estimate.at_least(100, "the best minute", reason="light load")
PRICE = Estimate.exact(2.0, "$2 per hour")
NONE = BusyTime(Estimate.exact(0.0, "nothing was generated"), T0, QUARTER_SECONDS)
UNKNOWN = Estimate.unknown("not judged")
HALF_FREE = Policy(headroom_ratio=0.5, spare_replicas=1)


def asked(hour: float, most: float | None = None, seconds: float = QUARTER_SECONDS) -> BusyTime:
    top = hour if most is None else most
    return BusyTime(Estimate.between(hour, hour, top, "the busiest hour"), T0, seconds)


@pytest.mark.parametrize(
    ("pools", "removable", "usd_per_day"),
    [
        pytest.param(
            {"m": Pool(8, asked(100, 120), KNOWN, PRICE)}, (4, 5, 5), (192, 240, 240), id="known"
        ),
        pytest.param(
            {"m": Pool(8, asked(100), LEAST, PRICE)}, (5, None, None), (240, None, None), id="bound"
        ),
        pytest.param(
            {"m": Pool(2, asked(100), KNOWN, PRICE)}, (0, 0, 0), (0, 0, 0), id="none can be removed"
        ),
        pytest.param(
            {"m": Pool(4, NONE, UNKNOWN, PRICE)}, (3, 3, 3), (144, 144, 144), id="no requests"
        ),
        pytest.param(
            {"m": Pool(8, asked(100), UNKNOWN, PRICE)},
            (None, None, None),
            (None, None, None),
            id="an unknown capacity",
        ),
        pytest.param(
            {"m": Pool(8, asked(100), LEAST, UNKNOWN)},
            (5, None, None),
            (None, None, None),
            id="no price",
        ),
        pytest.param(
            {"m": Pool(8, asked(100), LEAST, PRICE), "n": Pool(3, NONE, UNKNOWN, PRICE)},
            (7, None, None),
            (336, None, None),
            id="two models, each with its own replicas",
        ),
    ],
)
def test_replicas_the_busiest_time_did_not_need_are_removable(pools, removable, usd_per_day):
    found = surplus(pools, HALF_FREE)
    for said, expected in (
        (found.removable_replicas, removable),
        (found.usd_per_day, usd_per_day),
    ):
        assert (said.low, said.mid, said.high) == expected


def steps(*rates: float, seconds: float = 60.0, waiting: float = 0.0) -> pl.DataFrame:
    """One engine's steps one after the other, of requests of 100 output tokens."""
    length = timedelta(seconds=seconds)
    return pl.DataFrame(
        {
            "start": [T0 + length * i for i in range(len(rates))],
            "end": [T0 + length * (i + 1) for i in range(len(rates))],
            "output_tokens_per_second": rates,
            "requests_per_second": [rate / 100 for rate in rates],
            "waiting_max": [waiting] * len(rates),
        }
    )


BURST = [100.0] * 150 + [250.0] + [100.0] * 29  # three hours


@pytest.mark.parametrize(
    ("frame", "is_latency_bound", "ends"),
    [
        pytest.param(steps(*BURST), False, (102.5, 110), id="a quarter of an hour"),
        pytest.param(steps(*BURST), True, (102.5, 250), id="a minute, for latency targets"),
        pytest.param(steps(*BURST[140:160]), False, (107.5, 250), id="a minute, of a short window"),
        pytest.param(
            steps(*BURST, waiting=90), False, (102.5, 120), id="what waited was asked for, too"
        ),
        pytest.param(
            pl.concat([steps(*BURST), steps(*BURST)]), False, (205, 220), id="engines add up"
        ),
    ],
)
def test_the_busiest_time_is_that_of_all_engines(frame, is_latency_bound, ends):
    found = busiest(frame, is_latency_bound=is_latency_bound).demand
    assert (found.low, found.high) == pytest.approx(ends)


def test_no_observed_output_is_no_demand_of_zero():
    nothing = steps().cast({"start": pl.Datetime("us", "UTC"), "end": pl.Datetime("us", "UTC")})
    assert busiest(nothing, is_latency_bound=False).demand.is_unknown


def test_one_of_several_replicas_costs_between_the_cheapest_and_the_dearest():
    found = one_of([Estimate.exact(1.0, "a"), Estimate.exact(4.0, "b"), Estimate.exact(1.0, "c")])
    assert (found.low, found.mid, found.high) == (1, 2, 4)
    assert one_of([PRICE, UNKNOWN]) is UNKNOWN


@pytest.mark.parametrize(
    ("pool", "begins"),
    [
        pytest.param(
            Pool(8, asked(100, 120), KNOWN, PRICE),
            "At least 4 of 8 replicas can be removed: at least $192 per day. The busiest "
            "quarter-hour, from 24 Nov 2026 00:00 UTC, needed 120 output tokens/s; a replica "
            "provides at least 90.0, of which 50\u00a0% stays free, and 1 replica may fail.",
            id="an interval",
        ),
        pytest.param(
            Pool(8, asked(100), LEAST, UNKNOWN),
            "At least 5 of 8 replicas can be removed. ",
            id="no price",
        ),
        pytest.param(
            Pool(4, asked(100, 140), KNOWN, PRICE),
            "Up to 1 of 4 replicas can be removed: up to $48.00 per day. ",
            id="perhaps one",
        ),
        pytest.param(
            Pool(2, asked(100), KNOWN, PRICE),
            "None of the 2 replicas can be removed. ",
            id="none can be removed",
        ),
        pytest.param(
            Pool(2, asked(100), LEAST, PRICE),
            "It is not known how many replicas can be removed, because light load.",
            id="a bound that allows none",
        ),
        pytest.param(Pool(1, asked(1), KNOWN, PRICE), "", id="a single replica has no peers"),
    ],
)
def test_the_sentence_states_what_is_certain(pool, begins):
    said = " ".join(surplus_text(surplus({"m": pool}, HALF_FREE)).sentences)
    assert said.startswith(begins)
    assert begins or not said


def replayed(replicas, *, is_kept):
    return Replay(replicas, T0, 900.0, 100, 60.0, 0.1, 0.4, 0.03, 8.0, is_kept=is_kept)


@pytest.mark.parametrize(
    ("tried", "said"),
    [
        pytest.param([], [], id="no replay"),
        pytest.param(
            [replayed(3, is_kept=True)],
            [
                "In a simulated replay of the busiest arrivals (15.0 min from 24 Nov 2026 00:00 "
                "UTC), 3 replicas kept up even at the low end of the capacity: p95 TTFT "
                "400\xa0ms, ITL 30.0\xa0ms, E2E 8.00\xa0s."
            ],
            id="kept",
        ),
        pytest.param(
            [replayed(3, is_kept=False), replayed(4, is_kept=True)],
            [
                "In a simulated replay of the busiest arrivals (15.0 min from 24 Nov 2026 00:00 "
                "UTC), 3 replicas did not keep up (p95 TTFT 400\xa0ms, ITL 30.0\xa0ms, E2E "
                "8.00\xa0s), but 4 did, so these are counted."
            ],
            id="one more",
        ),
        pytest.param(
            [replayed(3, is_kept=False), replayed(3, is_kept=True)],
            [
                "In a simulated replay of the busiest arrivals (15.0 min from 24 Nov 2026 00:00 "
                "UTC), 3 replicas did not keep up (p95 TTFT 400\xa0ms, ITL 30.0\xa0ms, E2E "
                "8.00\xa0s) at the low end of the capacity, but did at its high end."
            ],
            id="at the high end",
        ),
    ],
)
def test_sentences_describe_the_replay(tried, said):
    assert replay_sentences(tried) == said
