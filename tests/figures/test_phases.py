"""Where the time of a request goes, on recordings and where nothing was recorded."""

from datetime import timedelta

import polars as pl
import pytest

from vllm_capacity.figures.latency import phases
from vllm_capacity.timerange import TimeRange


def test_phases_of_the_sweep_add_up_to_its_requests_whole_time(sweep):
    """Whole time: from arrival to the last token, as another histogram of the server sums it."""
    whole = sweep.sql(
        "select sum(total) as total from (select max(sum) as total from histograms "
        "join series using (series_id) where metric = 'vllm:e2e_request_latency_seconds' "
        "group by series_id, run)"
    )["total"][0]
    assert sum(
        phase.total_seconds for phase in phases(sweep, time_range=sweep.extent)
    ) == pytest.approx(whole, rel=0.01)


def test_shares_are_of_the_whole_and_means_of_the_finished(sweep):
    found = phases(sweep, time_range=sweep.extent)
    assert sum(phase.share_ratio for phase in found) == pytest.approx(1)
    assert [round(phase.total_seconds / phase.mean_seconds) for phase in found] == [2533] * 3


def test_queue_and_prefill_are_what_clients_waited_for_a_first_token(sweep, examples):
    truth = examples.parent.parent / "tests" / "truth" / "sweep_client.parquet"
    ok = pl.read_parquet(truth).filter(pl.col("status") == "ok")
    queue, prefill, _ = phases(sweep, time_range=sweep.extent)
    waited = ok["ttft_s"].mean()
    assert queue.mean_seconds + prefill.mean_seconds == pytest.approx(waited, rel=0.05)


def test_nothing_finished_is_unknown_not_zero_seconds(sweep):
    start = sweep.extent.start
    found = phases(sweep, time_range=TimeRange(start, start + timedelta(seconds=10)))
    assert [(p.total_seconds, p.mean_seconds, p.share_ratio) for p in found] == [(None,) * 3] * 3
