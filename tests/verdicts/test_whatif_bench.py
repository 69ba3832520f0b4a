"""The output of `python -m bench.whatif` on prices, setups and versions, by hand on few rows."""

import math

import pytest
from msgspec.structs import replace

from bench import whatif as bench
from bench.whatif_runs import silicon_pairs
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.throughput import Measurement
from vllm_capacity.verdicts.hardware.what_if import WhatIf

H100, H200 = "H100-80GB-SXM", "H200-141GB-SXM"
RUN = Measurement(
    model="openai/gpt-oss-20b",
    dtype="mxfp4",
    gpu=H100,
    gpus=1,
    engine_version="0.15.1",
    workload="1024 in / 1024 out, random",
    input_tokens=1024.0,
    output_tokens=1024.0,
    load="16 clients kept busy",
    clients=16,
    output_tokens_per_second=1000.0,
    source="made",
    date="2026-01-01",
)


def run(rate, *, gpu=H100, version="0.15.1", clients=16):
    return replace(
        RUN, gpu=gpu, output_tokens_per_second=rate, engine_version=version, clients=clients
    )


def asked(rate, *, low=None, mid=None, high=None, clients=16):
    """1,000 tokens/s on an H100, `rate` measured on an H200, and the band of an answer."""
    one, other = run(1000.0, clients=clients), run(rate, gpu=H200, clients=clients)
    mid = mid or rate
    found = Estimate.known(low or mid, mid, high or mid, "made")
    question = bench.question_from(one, other, is_load_given=True)
    return bench.Asked(one, other, question, WhatIf(found, found, found))


@pytest.fixture(autouse=True)
def prices(monkeypatch):
    """One provider, where an H200 costs half as much again as an H100."""
    monkeypatch.setattr(bench, "price_ratios", lambda one, other: [1.5 if one == H100 else 1 / 1.5])


def test_a_band_decides_the_prices_that_lie_outside_it():
    found = bench.surely_right(
        [
            asked(1800.0, low=1600.0, mid=1700.0, high=1900.0),
            asked(1200.0, low=1100.0, mid=1200.0, high=1300.0),
            asked(1800.0, low=1200.0, mid=1300.0, high=1400.0),
            asked(1800.0, low=1400.0, mid=1700.0, high=2000.0),
            asked(1510.0, low=1600.0, mid=1700.0, high=1900.0),
        ]
    )
    # The fourth band contains the price, the fifth is a toss-up; the third is certain but wrong.
    assert found == "75% of prices decided by the band, 67% right"


def test_no_band_is_decisive():
    wide = asked(1800.0, low=1000.0, mid=1700.0, high=3000.0)
    assert bench.surely_right([wide]) == "no band decides a price"


def test_the_cheaper_gpu_is_judged_over_all_winners():
    """Of four questions that the H200 wins three are right, of the one of the H100 none."""
    won = [asked(1800.0, mid=each) for each in (1700.0, 1700.0, 1700.0, 1400.0)]
    assert bench.winner_right([*won, asked(1200.0, mid=1700.0)]) == pytest.approx(0.375)


@pytest.mark.parametrize(
    ("setup", "error"),
    [
        # The median of 1.2, 1.2, 1.8, 1.8 and 2.0 is 1.8: off by 50 %, 50 %, 0, 0 and 11 %.
        pytest.param(lambda each: "all", "11.1%", id="one setup"),
        # By clients 1.2 (exact, twice) and 1.8 (0, 0 and 11 %).
        pytest.param(lambda each: each.one.clients, "0.0%", id="by clients"),
    ],
)
def test_knowing_the_median_of_a_setup(capsys, setup, error):
    rates = ((1200.0, 4), (1200.0, 4), (1800.0, 16), (1800.0, 16), (2000.0, 16))
    bench.knowing([asked(rate, clients=each) for rate, each in rates], "made setups", setup)
    assert f"knowing the median by made setups: {error}" in capsys.readouterr().out


def test_versions_of_one_setup_and_the_cheaper_gpu(capsys, monkeypatch):
    runs = [
        run(1000.0, version="0.15.1"),
        run(1250.0, version="0.18.0"),
        run(1600.0, gpu=H200),
        run(1000.0, version="0.15.1", clients=64),
        run(1600.0, gpu=H200, clients=64),
    ]
    monkeypatch.setattr(bench, "silicon_runs", lambda: runs)
    bench.versions()
    # The ratio is 1.6 with one version, 1.28 with the other, and the prices' is 1.5: it decides.
    assert capsys.readouterr().out.strip() == (
        "(two versions on one GPU: 1 pairs, 25.0% apart (median), 25% at most; which GPU is "
        "cheaper depends on the version in 100% of 1 prices)"
    )


def test_repeats_of_one_version_are_no_two_versions(capsys, monkeypatch):
    runs = [
        run(1000.0),
        run(1100.0),
        run(1000.0, version="0.18.0"),
        run(2000.0, gpu=H200),
        run(2000.0, gpu=H200, version="0.18.0"),
    ]
    monkeypatch.setattr(bench, "silicon_runs", lambda: runs)
    bench.versions()
    words = capsys.readouterr().out
    # H100: 0.18.0 paired with each of the two runs of 0.15.1; H200: one pair.
    assert "3 pairs, 0.0% apart (median), 10% at most" in words
    assert "0% of 2 prices" in words


def test_sweeps_have_two_loads_of_one_version(monkeypatch):
    runs = [
        run(1000.0, clients=4),
        run(4000.0, clients=64),
        run(2000.0, clients=16),
        run(1100.0, clients=4, version="0.18.0"),
        run(1900.0, clients=4, gpu=H200),
    ]
    monkeypatch.setattr("whatif_runs.silicon_runs", lambda: runs)
    found = bench.sweep_ends()
    assert [(one.clients, other.clients) for one, other in found] == [(4, 64)]


def test_off_is_the_logarithm_of_expected_over_measured():
    assert asked(1000.0, mid=2000.0).off == pytest.approx(math.log(2))


def test_pairs_whose_experts_are_split_alike():
    alike, every = silicon_pairs(is_split_alike=True), silicon_pairs()
    assert (2 * len(alike), 2 * len(every)) == (492, 566)


def test_prices_of_a_provider_tier_and_day_that_has_both():
    """One list of November has both; a B300 is 1.16 × a B200 in it."""
    assert bench.listed_ratios("B200-180GB-SXM", "B300-SXM") == pytest.approx([7.89 / 6.79])
    there, back = bench.listed_ratios(H100, H200), bench.listed_ratios(H200, H100)
    assert [1 / ratio for ratio in back] == pytest.approx(there)
    assert len(there) > 3
