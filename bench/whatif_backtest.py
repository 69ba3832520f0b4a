"""Back-test of the what-if on published pairs it has not seen: error, coverage, width, winner.

Run it as `python bench/whatif_backtest.py`. Every saturated pair is asked in both directions, once
with its whole model left out (of the calibration and of the look-up) and once with only its
workload left out of the look-up. A winner is right where tokens per dollar rank the two GPUs as
measured, at several providers' prices; each card's wins weigh half.
"""

from __future__ import annotations

import statistics

from whatif_calibration import fit, pairs, saturated_runs

from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.throughput import Measurement, measurements
from vllm_capacity.verdicts.published import Question
from vllm_capacity.verdicts.roofline import Calibration
from vllm_capacity.verdicts.whatif import what_if

PREFER = {"H100-80GB": ("SXM",)}
PRICES = {
    "RunPod secure 2026-11": (1.79, 3.99),
    "RunPod community 2026-11": (1.39, 2.69),
    "AWS 2026-11": (3.43, 6.88),
    "RunPod secure 2026-09": (1.59, 3.49),
    "Azure 2026-11": (3.67, 6.98),
}


def question(one: Measurement, other: Measurement) -> Question:
    return Question(
        llm=find_llm(one.model),
        dtype=one.dtype,
        to_dtype=other.dtype,
        from_gpu=find_gpu(one.gpu),
        to_gpu=find_gpu(other.gpu),
        gpus=one.gpus,
        output_tokens_per_second=one.output_tokens_per_second,
        input_tokens=one.input_tokens,
        output_tokens=one.output_tokens,
    )


def back_test(name: str, cases: list[tuple]) -> None:
    errors, widths, inside, refused = [], [], [], 0
    wins: dict[bool, list[bool]] = {True: [], False: []}
    for one, other, known, calibration in cases:
        found = what_if(
            question(one, other), published=known, prefer=PREFER, calibration=calibration
        )
        truth = other.output_tokens_per_second
        if not found.is_known:
            refused += 1
            continue
        errors.append(abs(found.mid / truth - 1))
        widths.append(found.high / found.low)
        inside.append(found.low <= truth <= found.high)
        for small, large in PRICES.values():
            to_large = other.gpu.startswith("H100")
            worth = large / small if to_large else small / large
            measured = truth / one.output_tokens_per_second > worth
            foreseen = found.mid / one.output_tokens_per_second > worth
            wins[measured == to_large].append(measured == foreseen)
    balanced = statistics.mean(statistics.mean(side) for side in wins.values())
    print(
        f"{name}: {len(errors)} answered, {refused} refused; median error "
        f"{statistics.median(errors):.1%}, inside {statistics.mean(inside):.0%}, "
        f"median high/low {statistics.median(widths):.2f}, winner right {balanced:.0%} (balanced)"
    )


def main() -> None:
    runs = saturated_runs()
    both = [*pairs(runs), *((other, one) for one, other in pairs(runs))]
    without = {
        model: fit([run for run in runs if run.model != model])
        for model in {run.model for run in runs}
    }
    seen = measurements()
    back_test(
        "model left out",
        [
            (one, other, [run for run in seen if run.model != one.model], without[one.model])
            for one, other in both
        ],
    )
    back_test(
        "workload left out",
        [
            (one, other, [run for run in seen if run.workload != one.workload], Calibration())
            for one, other in both
        ],
    )
    back_test("all seen", [(one, other, seen, Calibration()) for one, other in both])


if __name__ == "__main__":
    main()
