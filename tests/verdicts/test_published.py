import pytest
from msgspec.structs import replace

from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.throughput import Measurement, measurements
from vllm_capacity.verdicts.hardware.published import correction, measured_ratio, pairs
from vllm_capacity.verdicts.hardware.question import Load, Question

SLOW = Measurement(
    model="Qwen/Qwen3-8B",
    dtype="bf16",
    gpu="A100-80GB-SXM",
    gpus=1,
    engine_version="0.20.0",
    workload="chat",
    input_tokens=500.0,
    output_tokens=200.0,
    load="all at once",
    output_tokens_per_second=2000.0,
    source="a test",
    date="2026-11-24",
    note="",
)
OFFERED_11 = {"offered_requests_per_second": 11.0}
FAST = replace(SLOW, gpu="H100-80GB-any", output_tokens_per_second=5000.0)
ASKED = Question(
    llm=find_llm("Qwen3-8B"),
    dtype="bf16",
    to_dtype="bf16",
    from_gpu=find_gpu("A100-80GB-SXM"),
    to_gpu=find_gpu("H100-80GB-SXM"),
    gpus=1,
    output_tokens_per_second=2050.0,
    input_tokens=520.0,
    output_tokens=190.0,
)


def test_a_pair_answers_with_its_ratio():
    found = measured_ratio(ASKED, [SLOW, FAST])
    assert found.mid == pytest.approx(2050.0 * 2.5)
    assert found.low < found.mid < found.high


@pytest.mark.parametrize(
    ("result", "load", "answers"),
    [
        pytest.param(Load(is_capacity=True), {}, True, id="a burst is a capacity"),
        pytest.param(Load(is_capacity=True), OFFERED_11, False, id="all was served: none"),
        pytest.param(
            Load(is_capacity=True),
            {"offered_requests_per_second": 50.0},
            True,
            id="more came than was served",
        ),
        pytest.param(Load(is_capacity=True), {"clients": 16}, False, id="clients are none"),
        pytest.param(Load(clients=16), {"clients": 16}, True, id="as many clients"),
        pytest.param(Load(clients=8), {"clients": 16}, False, id="other clients"),
        pytest.param(Load(requests_per_second=11.0), OFFERED_11, True, id="as much came"),
        pytest.param(Load(requests_per_second=12.0), OFFERED_11, False, id="more came"),
    ],
)
def test_a_pair_answers_only_for_the_given_load(result, load, answers):
    published = [replace(run, **load) for run in (SLOW, FAST)]
    found = measured_ratio(replace(ASKED, load=result), published)
    assert (found is not None) == answers


@pytest.mark.parametrize(
    ("asked", "published"),
    [
        pytest.param(ASKED, [SLOW], id="only one side was published"),
        pytest.param(replace(ASKED, input_tokens=700.0), [SLOW, FAST], id="other lengths"),
        pytest.param(
            replace(ASKED, output_tokens_per_second=900.0), [SLOW, FAST], id="another rate"
        ),
        pytest.param(replace(ASKED, gpus=2), [SLOW, FAST], id="another GPU count"),
        pytest.param(replace(ASKED, to_dtype="fp8"), [SLOW, FAST], id="another type"),
        pytest.param(replace(ASKED, llm=find_llm("Qwen3-4B")), [SLOW, FAST], id="another model"),
        pytest.param(ASKED, [SLOW, replace(FAST, load="Poisson 5")], id="another load"),
    ],
)
def test_what_is_no_pair_answers_nothing(asked, published):
    assert measured_ratio(asked, published) is None


def test_of_several_loads_at_a_rate_the_heaviest_is_used():
    loads = [
        replace(
            run,
            load=f"Poisson {rate} req/s",
            offered_requests_per_second=float(rate),
            output_tokens_per_second=tokens,
        )
        for run, rate, tokens in (
            (SLOW, 10, 2000.0),
            (FAST, 10, 2100.0),
            (SLOW, 100, 2050.0),
            (FAST, 100, 5100.0),
        )
    ]
    assert measured_ratio(ASKED, loads).mid == pytest.approx(2050.0 * 5100 / 2050)


def test_runs_with_the_same_flags_are_compared():
    flagged = [
        replace(SLOW, async_scheduling=True, output_tokens_per_second=2060.0),
        replace(FAST, async_scheduling=True, output_tokens_per_second=6180.0),
    ]
    assert measured_ratio(ASKED, [SLOW, FAST, *flagged]).mid == pytest.approx(2050.0 * 3)


def test_repeats_that_differ_widen_the_band():
    narrow = measured_ratio(ASKED, [SLOW, FAST])
    wide = measured_ratio(ASKED, [SLOW, FAST, replace(FAST, output_tokens_per_second=4000.0)])
    assert wide.high / wide.low > narrow.high / narrow.low


def test_both_directions_agree():
    there = measured_ratio(ASKED, [SLOW, FAST])
    back = measured_ratio(
        replace(
            ASKED,
            from_gpu=ASKED.to_gpu,
            to_gpu=ASKED.from_gpu,
            output_tokens_per_second=there.mid,
        ),
        [SLOW, FAST],
    )
    assert back.mid == pytest.approx(2050.0)


def test_a_correction_is_shrunk_as_by_one_pair_without_error():
    same_mix = replace(ASKED, input_tokens=1250.0, output_tokens=500.0)
    shift, weight = correction(same_mix, [SLOW, FAST], lambda asked: 0.0)
    assert weight == pytest.approx(1.0)
    assert shift == pytest.approx(0.9163 / 2, abs=1e-3)


def test_without_pairs_nothing_is_corrected():
    assert correction(ASKED, [], lambda asked: 0.0) == (0.0, 0.0)


@pytest.mark.parametrize("run", measurements(), ids=lambda run: f"{run.gpu} {run.load} {run.date}")
def test_every_published_row_can_be_looked_up(run):
    assert find_llm(run.model).model == run.model
    assert find_gpu(run.gpu).rows
    assert run.output_tokens_per_second > 0
    assert run.source
    assert run.date


def test_a_pair_for_every_workload_both_cards_were_published_for():
    asked = replace(ASKED, llm=find_llm("gpt-oss-20b"), dtype="mxfp4", to_dtype="mxfp4")
    found = {pair.one.workload for pair in pairs(asked, measurements())}
    assert len(found) == 5
