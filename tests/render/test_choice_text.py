"""What would change the choice of a GPU, and what arithmetic says, as sentences."""

import pytest
from answer_by_hand import ANSWER, answer, estimate, unknown
from charts_by_hand import OPTIONS, PLAN
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate
from vllm_capacity.render.prose.verdict import by_arithmetic, verdict
from vllm_capacity.render.sections.choice import choice_text
from vllm_capacity.verdicts.hardware.choice import choices
from vllm_capacity.verdicts.hardware.unloaded import ByArithmetic

HERE = replace(OPTIONS[1], usd_per_gpu_hour=estimate(1.64), throughput_ratio=estimate(1.0))
SPACE = "\N{NO-BREAK SPACE}"


def other(price, low, mid, high):
    ratio = estimate(mid, low, high)
    return replace(OPTIONS[0], usd_per_gpu_hour=price, throughput_ratio=ratio)


@pytest.mark.parametrize(
    ("best", "says"),
    [
        pytest.param(
            other(estimate(2.63), 1.55, 1.89, 2.31),
            "H100-80GB-SXM gives 1.18 (between 0.97 and 1.44) times as many tokens per dollar as "
            "A100-80GB-PCIe. It stays ahead until its price passes $3.10 per GPU-hour (now $2.63), "
            "or that of A100-80GB-PCIe falls below $1.39 (now $1.64). An error of 18 % in the "
            "estimate would flip the order; the band allows for 22 %: too close to call.",
            id="the band is wider than the advantage",
        ),
        pytest.param(
            other(estimate(2.63), 1.8, 1.89, 2.0),
            "An error of 18 % in the estimate would flip the order; the band allows for 5.0 %: the "
            "order is clear.",
            id="the band is narrower",
        ),
        pytest.param(
            other(estimate(2.63, 2.0, 4.0), 1.8, 1.89, 2.0),
            "(now $2.63, offers between $2.00 and $4.00), or that of A100-80GB-PCIe falls below "
            "$1.39 (now $1.64). An error of 18 % in the estimate would flip the order; the band "
            "allows for 5.0 %, but prices differ by more: the one that you get decides.",
            id="offers differ",
        ),
    ],
)
def test_when_the_order_of_two_gpus_flips(best, says):
    (sentence,) = choice_text([best, HERE], here=HERE.gpu).sentences
    assert sentence.replace(SPACE, " ").endswith(says)


def test_a_plan_states_the_basis_of_its_comparison():
    options = (other(estimate(2.63), 1.55, 1.89, 2.31), HERE)
    calculated = replace(
        PLAN,
        options_basis="by arithmetic at 32 running requests",
        choices=choices(options, here=HERE.gpu),
    )
    basis, sentence = choice_text(calculated).sentences
    assert basis == "Throughput of the GPUs: by arithmetic at 32 running requests."
    assert sentence.startswith("H100-80GB-SXM gives")
    assert choice_text(PLAN).sentences == ()


REASON = "steady"
CALCULATED = ByArithmetic(
    gpu="A100-80GB-SXM",
    model="a model",
    running_requests=3.2,
    itl_seconds=0.012,
    capacity_running_requests=236.0,
    capacity_output_tokens_per_second=estimate(2900.0, 2000.0, 4200.0),
    utilization=estimate(0.04, 0.03, 0.06),
    headroom_ratio=estimate(0.96, 0.94, 0.97),
    idle_usd=estimate(1.92, 1.88, 1.94),
    slo_throughput_output_tokens_per_second=unknown("no latency target was given"),
    slo_headroom_ratio=unknown("no latency target was given"),
    removable_replicas=estimate(3.0, 2.0, 4.0),
    saved_usd_per_day=estimate(60.0, 40.0, 80.0),
)


def test_the_calculated_capacity_beside_the_bound():
    found = answer(by_arithmetic=CALCULATED)
    text = by_arithmetic(found).replace(SPACE, " ")
    assert text == (
        "By arithmetic, corrected by your ITL of 12.0 ms at 3.20 running requests, capacity on "
        "A100-80GB-SXM is 2,900 (between 2,000 and 4,200) output tokens/s at 236 running "
        "requests (KV memory, vLLM's default max_num_seqs): utilization was 4.0 % "
        "(between 3.0 % and 6.0 %), and $1.92 (between $1.88 and $1.94) of the $2.00 bill bought "
        "capacity nobody used."
    )
    assert by_arithmetic(found) in verdict(found)


def test_the_calculated_capacity_within_the_targets():
    found = replace(
        CALCULATED, slo_throughput_output_tokens_per_second=estimate(1900.0, 1500.0, 2600.0)
    )
    text = by_arithmetic(answer(by_arithmetic=found)).replace(SPACE, " ")
    assert text.endswith(
        " nobody used. Within the latency targets it is 1,900 (between 1,500 and 2,600) output "
        "tokens/s."
    )


def test_removable_replicas_by_arithmetic():
    fleet = answer(by_arithmetic=CALCULATED, window__engines=8)
    assert by_arithmetic(fleet).endswith(
        " At that capacity, 2 to 4 replicas can be removed, which saves $40.00 to $80.00 per day."
    )
    least = replace(
        CALCULATED,
        running_requests=1.0,
        capacity_output_tokens_per_second=Estimate.at_least(2000.0, "by it", reason=REASON),
        removable_replicas=Estimate.at_least(2.0, "by it", reason=REASON),
        saved_usd_per_day=unknown(REASON),
    )
    text = by_arithmetic(answer(by_arithmetic=least, window__engines=8))
    assert "at 1 running request, capacity on A100-80GB-SXM is at least 2,000" in text
    assert text.endswith(" At that capacity, at least 2 replicas can be removed.")


def test_a_calculation_without_a_result_is_not_shown():
    assert by_arithmetic(ANSWER) == ""
