"""What would change the choice between two GPUs, by hand and on silicon rows."""

import statistics
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import combinations

import pytest

from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.throughput import silicon_measurements
from vllm_capacity.verdicts.hardware.choice import CLEAR, CLOSE, PRICE, choice, choices
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.what_if import what_if


@dataclass(frozen=True)
class Offer:
    gpu: str
    usd_per_gpu_hour: Estimate
    throughput_ratio: Estimate
    is_comparable: bool = True


def offer(gpu, usd, ratio):
    price = usd if isinstance(usd, Estimate) else Estimate.exact(usd)
    return Offer(gpu, price, ratio if isinstance(ratio, Estimate) else Estimate.exact(ratio))


def band(mid, factor=1.22):
    return Estimate.known(mid / factor, mid, mid * factor, "scaled")


HERE = offer("A100", 1.64, 1.0)


def test_the_price_at_which_the_order_flips():
    found = choice(offer("H100", 2.63, band(1.89, 1.1)), HERE)
    assert (found.gpu, found.rival) == ("H100", "A100")
    assert found.flip_usd_per_gpu_hour.mid == pytest.approx(1.64 * 1.89)
    assert found.rival_flip_usd_per_gpu_hour.mid == pytest.approx(2.63 / 1.89)
    at_flip = choice(offer("H100", found.flip_usd_per_gpu_hour.mid, 1.89), HERE)
    assert at_flip.tokens_per_usd_ratio.mid == pytest.approx(1)


def test_the_error_at_which_the_order_flips():
    found = choice(offer("H100", 2.63, band(1.89)), HERE)
    off = 1 + found.flip_error_ratio
    flipped = choice(offer("H100", 2.63, 1.89 / off), HERE)
    assert flipped.tokens_per_usd_ratio.mid == pytest.approx(1)


@pytest.mark.parametrize(
    ("price", "factor", "verdict"),
    [
        pytest.param(2.63, 1.1, CLEAR, id="the band is narrower than the advantage"),
        pytest.param(2.63, 1.22, CLOSE, id="the band is wider than the advantage"),
        pytest.param(Estimate.known(1.9, 2.63, 6.9, "offers"), 1.1, PRICE, id="offers differ"),
    ],
)
def test_how_clear_the_order_is(price, factor, verdict):
    assert choice(offer("H100", price, band(1.89, factor)), HERE).verdict == verdict


def test_the_gpu_in_use_may_be_ahead():
    found = choice(offer("H100", 4.0, band(1.5)), HERE)
    assert (found.gpu, found.rival) == ("A100", "H100")
    assert found.flip_usd_per_gpu_hour.mid == pytest.approx(4.0 / 1.5)


def test_more_gpus_cost_more():
    found = choice(offer("L4", 0.4, band(2.4)), HERE, gpus=4)
    assert found.tokens_per_usd_ratio.mid == pytest.approx(2.4 * 1.64 / (4 * 0.4))
    assert found.flip_usd_per_gpu_hour.mid == pytest.approx(2.4 * 1.64 / 4)


def test_the_error_of_the_gpu_measured_drops_out():
    found = choice(offer("H200", 3.0, band(2.5, 1.2)), offer("H100", 3.0, band(2.0, 1.2)))
    assert found.throughput_ratio.mid == pytest.approx(1.25)
    assert found.band_error_ratio == pytest.approx(0.2)


def test_the_band_between_two_gpus_that_were_scaled_holds_on_silicon():
    inside, widths = [], []
    for truth, found in scaled_pairs():
        inside.append(found.low <= truth <= found.high)
        widths.append(found.high / found.low)
    assert len(inside) > 200
    assert sum(inside) / len(inside) >= 0.88
    assert statistics.median(widths) <= 1.8


def scaled_pairs():
    """The ratio of two GPUs as predicted from a third, and as measured: silicon rows of one load.

    The step times were fitted on these rows; `bench/whatif.py` leaves models out.
    """
    groups = defaultdict(dict)
    for row in silicon_measurements():
        setup = row.model, row.dtype, row.gpus, row.input_tokens, row.output_tokens, row.clients
        groups[setup][row.gpu] = row
    for own in groups.values():
        for here in own.values():
            others = [row for row in own.values() if row is not here]
            for one, other in combinations(others, 2):
                offers = (offer(to.gpu, 1.0, scaled(here, to)) for to in (one, other))
                found = choice(*offers)
                rates = {row.gpu: row.output_tokens_per_second for row in (one, other)}
                yield rates[found.gpu] / rates[found.rival], found.throughput_ratio


def scaled(here, there):
    """Output on one GPU over that on another, none of these rows looked up."""
    asked = Question(
        llm=find_llm(here.model),
        dtype=here.dtype,
        to_dtype=here.dtype,
        from_gpu=find_gpu(here.gpu),
        to_gpu=find_gpu(there.gpu),
        gpus=here.gpus,
        output_tokens_per_second=here.output_tokens_per_second,
        input_tokens=here.input_tokens,
        output_tokens=here.output_tokens,
        load=Load(clients=here.clients),
    )
    return what_if(asked).output_tokens_per_second.scaled(1 / here.output_tokens_per_second)


def test_an_unavailable_option_changes_nothing():
    gone = replace(offer("H100", 2.63, 2.0), is_comparable=False)
    assert choice(gone, HERE) is None
    assert choices([HERE, gone], here="A100") == ()


def test_the_gpu_in_use_against_the_best_other_and_the_best_two():
    ranked = [offer("H200", 3.0, band(3.0)), offer("H100", 3.0, band(2.0)), HERE]
    assert [(c.gpu, c.rival) for c in choices(ranked, here="A100")] == [
        ("H200", "A100"),
        ("H200", "H100"),
    ]
    assert [(c.gpu, c.rival) for c in choices([HERE, ranked[1]], here="A100")] == [("H100", "A100")]
