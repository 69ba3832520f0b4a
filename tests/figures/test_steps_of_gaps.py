"""Steps: what each of them observed, and nothing where it observed nothing."""

import numpy as np
import polars as pl

from tests.truth_server import loads
from tests.truth_server.servers import MIXES, SERVERS
from tests.truth_server.windows import Life, Scraping, write
from vllm_capacity.figures.steps import engine_steps
from vllm_capacity.telemetry.window import open_window


def test_a_gap_that_ends_where_a_step_begins_leaves_it_without_a_rate(tmp_path):
    load = (loads.poisson(np.random.default_rng(0), 0.5, -60.0, 1200.0),)
    life = Life("gpu", SERVERS["cpu-small"], MIXES["tiny-fixed"], load, 0, -60.0)
    write(tmp_path / "w", [life], seconds=1200.0, scraping=Scraping(60.0, 0.0, 0.3, seed=2))
    window = open_window(tmp_path / "w")
    rates = engine_steps(window, time_range=window.extent).select(pl.col("^.*_per_second$"))
    assert rates.select(pl.all().null_count().min()).item(0, 0) > 0
    assert not rates.select(pl.any_horizontal(pl.all().is_nan().any())).item()
