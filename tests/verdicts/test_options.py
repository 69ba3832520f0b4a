import json

import pytest
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.gpus import find_gpu, gpus
from vllm_capacity.facts.llms import find_llm, llms
from vllm_capacity.facts.prices import choose_price
from vllm_capacity.verdicts.hardware.compare import Candidate, whatif_table
from vllm_capacity.verdicts.hardware.question import Question
from vllm_capacity.verdicts.sizing import Policy, replicas

MEASURED = Question(
    llm=find_llm("Qwen3-14B"),
    dtype="bf16",
    to_dtype="bf16",
    from_gpu=find_gpu("A100-80GB-SXM"),
    to_gpu=find_gpu("A100-80GB-SXM"),
    gpus=1,
    output_tokens_per_second=1500.0,
    input_tokens=512.0,
    output_tokens=256.0,
)


def candidate(gpu, *, dtype="bf16", price=None):
    chosen = choose_price(gpu=gpu) if price is None else Estimate.exact(price, f"${price}")
    return Candidate(find_gpu(gpu), dtype, chosen.sources, chosen)


def table(*candidates, slo=None, demand=10_000.0):
    return whatif_table(
        MEASURED,
        candidates,
        slo_capacity=slo or Estimate.known(900, 1000, 1100, "SLO capacity"),
        demand=Estimate.exact(demand, "p95 demand"),
        policy=Policy(0.2, 1),
    )


def test_the_measured_gpu_is_itself():
    (option,) = table(candidate("A100-80GB-SXM", price=2.0))
    assert option.slo_output_tokens_per_second.mid == pytest.approx(1000)
    assert option.tokens_per_usd.mid == pytest.approx(1000 * 3600 / 2.0)
    assert option.usd_per_request.mid == pytest.approx(2.0 / 3600 / 1000 * 256)
    assert option.replicas.mid == 14
    assert option.usd_per_month.mid == pytest.approx(14 * 2.0 * 730.5)


def test_most_tokens_per_dollar_come_first_and_rejected_options_last():
    options = table(
        candidate("L4-PCIe", price=0.8),
        candidate("H100-80GB-SXM", price=4.0),
        candidate("H100-80GB-SXM", price=2.5),
        candidate("A30-PCIe"),
    )
    assert [option.usd_per_gpu_hour.mid for option in options[:2]] == [2.5, 4.0]
    assert [bool(option.reason) for option in options] == [False, False, True, True]


@pytest.mark.parametrize(
    ("gpu", "says"),
    [
        pytest.param("L4-PCIe", "do not fit", id="the weights do not fit"),
        pytest.param("A100-40GB-PCIe", "no on-demand price", id="it has no price"),
    ],
)
def test_a_rejected_option_is_a_row_with_a_reason(gpu, says):
    (option,) = table(candidate(gpu))
    assert says in option.reason
    assert not option.tokens_per_usd.is_known


def test_an_unknown_slo_capacity_rejects_all_for_that_reason():
    (option,) = table(candidate("A100-80GB-SXM"), slo=Estimate.unknown("no knee was seen"))
    assert option.reason == "no knee was seen"


def test_the_basis_names_the_price():
    (option,) = table(candidate("H100-80GB-SXM"))
    assert "offers of H100-80GB-SXM" in option.usd_per_request.sources


def test_rows_are_json():
    rows = [option.as_dict() for option in table(candidate("A100-80GB-SXM"), candidate("L4-PCIe"))]
    names = set(Estimate.__struct_fields__)
    assert set(json.loads(json.dumps(rows))[0]["tokens_per_usd"]) == names


@pytest.mark.parametrize("gpu", gpus(), ids=lambda gpu: gpu.name)
def test_on_every_gpu_a_higher_price_never_lowers_a_cost(gpu):
    cheap, dear = (table(candidate(gpu.name, price=price))[0] for price in (1.0, 3.0))
    for figure in ("usd_per_request", "usd_per_month"):
        low, high = getattr(cheap, figure), getattr(dear, figure)
        assert low.is_known == high.is_known
        if low.is_known:
            assert high.mid >= low.mid
            assert high.low >= low.low


@pytest.mark.parametrize("llm", llms(), ids=lambda llm: llm.model)
def test_of_every_model_on_every_gpu_more_demand_never_needs_fewer(llm):
    measured = replace(
        MEASURED,
        llm=llm,
        dtype=llm.weights_dtype,
        from_gpu=find_gpu("GB300-NVL72"),
        gpus=4 if llm.attention_heads % 8 else 8,
    )
    options = whatif_table(
        measured,
        [candidate(gpu.name, dtype=llm.weights_dtype, price=1.0) for gpu in gpus()],
        slo_capacity=Estimate.known(900, 1000, 1100, "SLO capacity"),
        demand=Estimate.exact(5e3, "p95 demand"),
        policy=Policy(),
    )
    known = [option for option in options if option.replicas.is_known]
    assert known
    for option in known:
        less, more = (
            replicas(
                Estimate.exact(demand, "p95 demand"),
                option.slo_output_tokens_per_second,
                Policy(),
            )
            for demand in (0.0, 1e5)
        )
        assert less.low <= option.replicas.low <= more.low
        assert less.mid <= option.replicas.mid <= more.mid
        assert less.high <= option.replicas.high <= more.high


def test_two_gpus_per_replica_cost_twice():
    one, two = (
        whatif_table(
            replace(MEASURED, gpus=count),
            [candidate("A100-80GB-SXM", price=2.0)],
            slo_capacity=Estimate.exact(1000.0, "SLO capacity"),
            demand=Estimate.exact(5000.0, "demand"),
            policy=Policy(),
        )[0]
        for count in (1, 2)
    )
    assert two.usd_per_month.mid == pytest.approx(2 * one.usd_per_month.mid)
