"""The rows behind a page, as CSV: all of them, and those of the page's own analysis."""

from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import polars as pl
import pytest

import vllm_capacity as vc
from vllm_capacity.render.exports.rows import to_zip
from vllm_capacity.render.report.write import _analysis_of, _parameters_of, rows_of


@pytest.fixture(scope="module")
def sweep() -> vc.Analysis:
    slo = vc.Slo(ttft_p95_seconds=2.0)
    return vc.open("vllm-sweep").analyze(price="1.2 to 1.9", slo=slo, gpus_per_engine=2.0)


def frames(analysis: vc.Analysis) -> dict[str, pl.DataFrame]:
    with ZipFile(BytesIO(to_zip(analysis))) as archive:
        return {name: pl.read_csv(archive.read(name)) for name in archive.namelist()}


def test_every_row_is_there(sweep: vc.Analysis) -> None:
    found = frames(sweep)
    assert found["steps.csv"].height == sweep.steps.height
    assert found["regimes.csv"].height == len(sweep.saturation.regimes)
    assert found["steps.csv"]["output_tokens_per_second"].sum() == pytest.approx(
        sweep.steps["output_tokens_per_second"].sum(), rel=1e-12
    )


def test_what_a_window_does_not_have_is_left_out(sweep: vc.Analysis) -> None:
    found = frames(sweep)
    assert {"bill.csv", "series.csv"} <= found.keys()
    assert not found.keys() & {"engines.csv", "models.csv", "hours.csv"}


def test_a_fleet_has_its_tables() -> None:
    found = frames(vc.open("vllm-two-replicas").analyze(price=1.0))
    assert found["engines.csv"].height == 2


def test_the_same_rows_give_the_same_bytes(sweep: vc.Analysis) -> None:
    assert to_zip(sweep) == to_zip(sweep)


def test_rows_are_of_the_analysis_that_the_page_shows(sweep: vc.Analysis) -> None:
    again = _analysis_of(_parameters_of(sweep))
    assert again.answer == sweep.answer


def test_a_part_is_the_part() -> None:
    part = vc.open("vllm-sweep")["04:05":"04:10"].analyze()
    assert _analysis_of(_parameters_of(part)).time_range == part.time_range


def test_they_are_written_beside_their_page() -> None:
    assert rows_of(Path("monday.v2.html")).name == "monday.v2.csv.zip"
