"""Servers that were never loaded, by arithmetic: how often it holds, when there is none."""

import math
import statistics

import numpy as np
import polars as pl
import pytest
from msgspec.structs import replace

from bench.whatif_runs import sweep_ends
from vllm_capacity.analysis import Analysis
from vllm_capacity.assumptions import Assumptions, Hardware, Slo, pricing
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm, weight_dtype
from vllm_capacity.plan import plan
from vllm_capacity.resources import shipped
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.verdicts.hardware.elsewhere import full_from_light, heaviest_load
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.serving import shipped_calibration
from vllm_capacity.verdicts.hardware.side import machines_of, side
from vllm_capacity.verdicts.hardware.unloaded import (
    FASTEST,
    SLOWEST,
    Heaviest,
    Setup,
    _unlike,
    heaviest,
    in_production,
)
from vllm_capacity.verdicts.hardware.what_if import shipped_what_if, what_if
from vllm_simulator import scenarios
from vllm_simulator.config import StepTime
from vllm_simulator.simulate import provenance, run_scenario
from vllm_simulator.workload import Arrivals

A100, MODEL = "A100-80GB-SXM", "meta-llama/Llama-3.1-8B-Instruct"
LENGTHS = scenarios.A100_LENGTHS
ALONE_SECONDS, PER_SEQUENCE_SECONDS, PER_PROMPT_TOKEN_SECONDS = 0.0112, 0.00007, 0.00005
"""A simulated server with step times linear in its load, unlike the step-time model."""
BLOCKS = 28_000


def server(*off):
    """A simulated server, its three constants off by these logarithms."""
    factors = [math.exp(each) for each in off]
    step = StepTime(
        base_seconds=ALONE_SECONDS * factors[0],
        per_sequence_seconds=PER_SEQUENCE_SECONDS * factors[1],
        per_prefill_token_seconds=PER_PROMPT_TOKEN_SECONDS * factors[2],
        jitter_ratio=0.08,
    )
    return replace(
        scenarios.A100_SERVER,
        model_name=MODEL,
        num_gpu_blocks=BLOCKS,
        step_time=step,
        sliding_blocks=0,
    )


def simulated(path, config, workload, seconds):
    scenario = replace(
        scenarios.scenario("a100-gpt-oss-20b"), config=config, workload=workload, seconds=seconds
    )
    write_window(path, run_scenario(scenario).rows, provenance(scenario))
    return open_window(path)


def lightly_loaded(path, config=None, *, requests_per_second=5.0):
    arrivals = Arrivals(int(requests_per_second * 600), 1.0, 590.0)
    workload = scenarios._poisson(arrivals, LENGTHS)
    return simulated(path, config or server(0.0, 0.0, 0.0), workload, 600)


def analysis(window, gpu=A100, *, slo=None, **given):
    assumed = Assumptions(pricing(1.64), slo or Slo(), Hardware(gpu, **given))
    return Analysis.of(window, assumptions=assumed)


@pytest.fixture(scope="module")
def light(tmp_path_factory):
    """A server at a steady light load of about 12 running requests."""
    return lightly_loaded(tmp_path_factory.mktemp("light") / "w")


def test_from_the_lightest_silicon_load_to_the_heaviest():
    """The step times were fitted on these rows; `bench/whatif.py` leaves models out."""
    inside, widths, errors = [], [], []
    for least, most in sweep_ends():
        asked = question_of(least)
        if heaviest_load(asked, admitted=most.clients) != (most.clients, True):
            continue
        of = full_from_light(asked, what_if, admitted=most.clients)
        found = in_production(of.output_tokens_per_second)
        truth = most.output_tokens_per_second
        inside.append(found.low <= truth <= found.high)
        widths.append(found.high / found.low)
        errors.append(math.expm1(abs(math.log(found.mid / truth))))
    assert len(inside) >= 50
    assert sum(inside) / len(inside) >= 0.9
    assert statistics.median(widths) <= 1.8
    assert statistics.median(errors) <= 0.08


def test_from_light_open_loads_of_another_laboratory_to_saturation():
    """Open loads; their saturated runs were fitted, their light ones not."""
    bounds, inside = [], []
    for asked, is_full, truth in open_sweeps():
        found = in_production(full_from_light(asked, what_if).output_tokens_per_second)
        if is_full:
            inside.append(found.low <= truth <= found.high)
        else:
            bounds.append(found.low <= truth)
    assert len(bounds) >= 8
    assert len(inside) >= 6
    assert all(bounds)
    assert sum(inside) / len(inside) >= 0.8


def open_sweeps():
    """Light rows of sweeps that offer requests: as a question, whether the server is full at the
    load it tells of, and the sweep's greatest output tokens/s.
    """
    given = ["mean_ttft_ms", "median_tpot_ms", "offered_requests_per_second"]
    table = pl.read_csv(shipped("data/published_throughput.csv"), infer_schema_length=None)
    sweeps = table.drop_nulls(given).partition_by("model", "dtype", "gpu", "gpus", "workload")
    for own in sweeps:
        truth = own["output_tokens_per_second"].max()
        for row in own.filter(pl.col("output_tokens_per_second") <= truth / 2).rows(named=True):
            ttft, itl = row["mean_ttft_ms"] / 1e3, row["median_tpot_ms"] / 1e3
            seconds = ttft + itl * (row["output_tokens"] - 1)
            running = row["output_tokens_per_second"] / row["output_tokens"] * seconds
            dtype, llm = weight_dtype(row["dtype"]), find_llm(row["model"])
            lengths = row["input_tokens"], row["output_tokens"]
            setup = Setup(find_gpu(row["gpu"]), row["gpus"], llm, *lengths, ttft, itl)
            question = replace(setup.asked(max(running, 1.0)), dtype=dtype, to_dtype=dtype)
            if _unlike(question) == "":
                yield question, heaviest_load(question)[1], truth


def test_mxfp4_on_a100_from_four_clients_to_a_burst():
    """No such kernel was timed on it: the wide band contains the published runs."""
    table = pl.read_csv(shipped("data/published_throughput.csv"), infer_schema_length=None)
    own = table.filter(
        pl.col("model") == "openai/gpt-oss-120b",
        pl.col("gpu").str.starts_with("A100"),
        pl.col("gpus") == 1,
        pl.col("workload").str.starts_with("ShareGPT"),
    )
    few = own.filter(pl.col("clients") == 4)
    assert few.height == 2
    for row in few.rows(named=True):
        ttft, itl = row["mean_ttft_ms"] / 1e3, row["mean_tpot_ms"] / 1e3
        lengths = row["input_tokens"], row["output_tokens"]
        llm = find_llm(row["model"])
        asked = Setup(find_gpu(row["gpu"]), 1, llm, *lengths, ttft, itl).asked(4.0)
        assert _unlike(asked) == ""
        whole = full_from_light(asked, what_if).output_tokens_per_second
        found = in_production(whole, is_timed=False)
        truth = own.filter(
            pl.col("clients").is_null(), pl.col("async_scheduling") == row["async_scheduling"]
        )["output_tokens_per_second"].max()
        at_least = Heaviest(asked, found, *heaviest_load(asked)).capacity
        assert at_least.low <= truth
        assert found.high / found.low > 2


def test_servers_given_correctly_pass_the_check_at_their_light_load():
    ratios = []
    for least, _ in sweep_ends():
        asked = question_of(least)
        job, clients = asked.job_here, asked.load.clients
        machine = next(machines_of(job, asked.from_gpu, {}))
        rate = side(job, machine, shipped_calibration(), clients=clients).rate
        ratios.append(asked.output_tokens_per_second / rate)
    assert len(ratios) >= 80
    assert SLOWEST < 0.7 < min(ratios)
    assert max(ratios) < 1.15 < FASTEST


def question_of(row):
    gpu = find_gpu(row.gpu)
    return Question(
        llm=find_llm(row.model),
        dtype=row.dtype,
        to_dtype=row.dtype,
        from_gpu=gpu,
        to_gpu=gpu,
        gpus=row.gpus,
        output_tokens_per_second=row.output_tokens_per_second,
        input_tokens=row.input_tokens,
        output_tokens=row.output_tokens,
        load=Load(clients=row.clients),
        itl_seconds=row.mean_tpot_ms / 1e3,
    )


def test_simulated_servers_reach_the_calculated_capacity(tmp_path):
    """Servers by another law than the model's, constants off by 15 %, from light loads to full."""
    rng = np.random.default_rng(20)
    bounds, inside = [], []
    for case in range(5):
        config = server(*rng.normal(0.0, 0.15, 3))
        closed = scenarios._closed(((600, 150),), LENGTHS)
        truth = analysis(simulated(tmp_path / f"full{case}", config, closed, 150)).saturation
        for rate in (1.0, 5.0):
            path = tmp_path / f"light{case}-{rate:g}"
            window = lightly_loaded(path, config, requests_per_second=rate)
            found = analysis(window).by_arithmetic.capacity
            if found.is_bound:
                bounds.append(found.low <= truth.capacity.mid)
            elif found.is_known:
                inside.append(found.low <= truth.capacity.mid <= found.high)
    assert len(bounds) >= 3
    assert len(inside) >= 4
    assert all(bounds)
    assert sum(inside) / len(inside) >= 0.8


def test_it_is_shown_next_to_the_bound(light):
    of = analysis(light)
    found, answer = of.by_arithmetic, of.answer
    assert answer.saturation.capacity.is_bound
    assert answer.cost.utilization.is_bound
    assert found.capacity.low > answer.saturation.capacity.low
    assert found.utilization.high < answer.cost.utilization.high
    assert found.idle_usd.low > answer.cost.idle_usd.low
    assert found.headroom_ratio.mid == pytest.approx(1 - found.utilization.mid)
    assert found.running_requests == pytest.approx(12, abs=2)
    assert found.itl_seconds == pytest.approx(0.0125, rel=0.1)


def test_the_plan_compares_gpus_by_it(light):
    found = plan(analysis(light))
    assert found.capacity_output_tokens_per_second.is_bound
    assert found.capacity_by_arithmetic_output_tokens_per_second.is_known
    assert found.options_basis.startswith("by arithmetic at 2")
    assert "corrected by your ITL at 1" in found.options_basis
    assert found.option(A100).throughput_ratio.mid == 1
    assert found.choices[0].rival == A100 or found.choices[0].gpu == A100
    curve = found.interactivity.curves[0]
    assert (curve.gpu, curve.is_measured) == (A100, False)
    costs = [load.usd_per_million_output_tokens.mid for load in curve.loads]
    assert costs == sorted(costs, reverse=True)


def test_a_very_light_load_gives_a_bound(tmp_path):
    of = analysis(lightly_loaded(tmp_path / "w", requests_per_second=1.0))
    found = of.by_arithmetic
    assert found.capacity.is_bound
    assert "32 × as many" in found.capacity.reason
    assert found.utilization.low is None
    assert found.utilization.high < of.cost.utilization.high


def test_the_gpu_is_not_known(light):
    assert "name it (gpu)" in analysis(light, None).by_arithmetic.capacity.reason


def test_a_weight_type_without_validation():
    (least, _), *_ = sweep_ends()
    asked = replace(question_of(least), from_gpu=find_gpu(A100), dtype="nvfp4", gpus=8)
    assert "no nvfp4 kernels were timed on A100" in _unlike(asked)


def test_a_weight_type_that_was_never_timed_there_has_a_wide_band_and_says_so(tmp_path):
    """The worked example's server: a burst of the same requests gave 5,180 on the real GPU."""
    workload = scenarios._poisson(Arrivals(6000, 1.0, 290.0), LENGTHS)
    window = simulated(tmp_path / "w", scenarios.A100_SERVER, workload, 300)
    found = analysis(window).by_arithmetic.capacity
    assert found.low <= 5180 <= found.high
    assert found.high / found.low > 2
    assert "no mxfp4 kernels were timed on A100-80GB-SXM" in found.sources


@pytest.mark.parametrize(
    ("gpu", "given", "says"),
    [
        pytest.param("L4-PCIe", {}, "does not fit next to the weights", id="too small a GPU"),
        pytest.param("B200-180GB-SXM", {}, "or the host may be the limit", id="too quick a GPU"),
        pytest.param(A100, {"model": "Qwen3-0.6B"}, "check the GPU", id="another model"),
    ],
)
def test_inputs_that_do_not_fit_this_server_are_rejected(light, gpu, given, says):
    found = analysis(light, gpu, **given).by_arithmetic
    assert says in found.capacity.reason
    assert found.capacity.is_unknown


def test_a_measured_capacity_takes_precedence(sweep):
    found = analysis(sweep, model="Qwen3-0.6B").by_arithmetic
    assert found.capacity.reason == "the capacity was found from the telemetry"


SETUP = Setup(find_gpu(A100), 1, find_llm(MODEL), 215.0, 194.0, 0.03, 0.0124)


@pytest.mark.parametrize(
    ("changes", "held", "says"),
    [
        pytest.param({"is_speculating": True}, 1000.0, "speculative", id="tokens are drafted"),
        pytest.param({"cached_ratio": 0.3}, 1000.0, "30 % of the prompt", id="prompts are cached"),
        pytest.param({}, 9000.0, "but 9,000 were observed", id="it held more"),
    ],
)
def test_there_is_no_result(light, changes, held, says):
    bound = Estimate.at_least(held, "the best minute", reason="steady")
    found = heaviest(analysis(light).fits[0], replace(SETUP, **changes), bound, shipped_what_if)
    assert says in found


def test_it_is_at_least_the_observed_throughput(light):
    bound = Estimate.at_least(4200.0, "the best minute", reason="steady")
    found = heaviest(analysis(light).fits[0], SETUP, bound, shipped_what_if)
    assert isinstance(found, Heaviest)
    assert found.capacity.low == 4200.0


def test_its_kv_cache_says_how_many_run(light):
    bound = Estimate.at_least(1000.0, "the best minute", reason="steady")
    small = replace(SETUP, kv_tokens=64 * (215.0 + 97.0))
    found = heaviest(analysis(light).fits[0], small, bound, shipped_what_if)
    assert (found.running, found.is_full) == (64.0, True)


def test_an_idle_server_gives_no_result(tmp_path):
    window = simulated(tmp_path / "w", server(0.0, 0.0, 0.0), scenarios._nobody, 600)
    of = analysis(window)
    assert of.by_arithmetic.capacity.is_unknown
    assert of.cost.utilization.high == 0
    assert "no request finished" in of.by_arithmetic.capacity.reason


def test_labels_determine_the_gpu(light):
    found = analysis(light, None)
    make = next(iter(found.makes.values()))
    labelled = replace(make, settings={**make.settings, "gpu_product": "NVIDIA-A100-SXM4-80GB"})
    vars(found)["makes"] = dict.fromkeys(found.makes, labelled)
    assert found.by_arithmetic.gpu == A100
