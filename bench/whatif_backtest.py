"""Back-test of the what-if on published pairs it has not seen: error, coverage, width, winner.

Run it as `python bench/whatif_backtest.py [--write]`. With --write it writes the answers with the
model left out to `data/tuning/whatif_backtest.csv`, which notebook 08 reads, and stops. Every pair
is asked in both directions, with its whole model, its whole source or only its workload left out
(of the fit and of the look-up). A winner is right where tokens per dollar rank the two GPUs as
measured, at the price rows of every provider that offers both and at the medians of all offers;
each card's wins weigh half.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator

import polars as pl
from whatif_calibration import fit
from whatif_runs import (
    HELD_BACK,
    PAIRS_2024,
    Pair,
    light_pairs,
    load_of,
    saturated_pairs,
    saturated_runs,
    source,
    table_pairs,
)

from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.prices import offers
from vllm_capacity.facts.throughput import Measurement, measurements
from vllm_capacity.resources import shipped
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.roofline import Calibration
from vllm_capacity.verdicts.hardware.what_if import what_if

PREFER = {"H100-80GB": ("SXM",)}
Asked = tuple[Measurement, Measurement, Estimate]
"""What was measured on one GPU, on the other, and what was foreseen of it."""


def answers(
    pairs: Iterable[Pair],
    left_out: Callable[[Measurement], object] | None,
    *,
    is_load_told: bool = False,
) -> Iterator[Asked]:
    """Both directions of each pair, asked without the runs that share what `left_out` names."""
    fits: dict[object, Calibration] = {}
    for pair in pairs:
        known, calibration = list(measurements()), Calibration()
        if left_out is not None:
            left = left_out(pair[0])
            known = [run for run in known if left_out(run) != left]
            if left_out is not workload and left not in fits:
                fits[left] = fit(lambda run, left=left: left_out(run) == left)[0]
            calibration = fits.get(left, calibration)
        for one, other in (pair, pair[::-1]):
            asked = Question(
                llm=find_llm(one.model),
                dtype=one.dtype,
                to_dtype=other.dtype,
                from_gpu=find_gpu(one.gpu),
                to_gpu=find_gpu(other.gpu),
                gpus=one.gpus,
                output_tokens_per_second=one.output_tokens_per_second,
                input_tokens=one.input_tokens,
                output_tokens=one.output_tokens,
                load=load_of(one) if is_load_told else Load(),
            )
            found = what_if(asked, published=known, prefer=PREFER, calibration=calibration)
            yield one, other, found


def report(name: str, asked: Iterable[Asked]) -> None:
    asked = list(asked)
    known = [(one, other, found) for one, other, found in asked if found.is_known]
    rates = [other.output_tokens_per_second for _, other, _ in known]
    found = [answer for _, _, answer in known]
    errors = [abs(answer.mid / rate - 1) for answer, rate in zip(found, rates, strict=True)]
    inside = [answer.low <= rate <= answer.high for answer, rate in zip(found, rates, strict=True)]
    print(
        f"{name}: {len(known)} answered, {len(asked) - len(known)} refused; median error "
        f"{statistics.median(errors):.1%}, inside {statistics.mean(inside):.0%}, median high/low "
        f"{statistics.median(answer.high / answer.low for answer in found):.2f}, "
        f"winner right {winner_right(known):.0%} (balanced)"
    )


def winner_right(asked: Iterable[Asked]) -> float:
    """How often tokens per dollar rank the two as measured: the mean over the two cards' wins."""
    wins: dict[str, list[bool]] = defaultdict(list)
    for one, other, found in asked:
        for worth in price_ratios(one.gpu, other.gpu):
            measured = other.output_tokens_per_second / one.output_tokens_per_second > worth
            extrapolated = found.mid / one.output_tokens_per_second > worth
            winner = other if measured else one
            wins[winner.gpu.rsplit("-", 1)[0]].append(measured == extrapolated)
    return statistics.mean(statistics.mean(right) for right in wins.values())


def price_ratios(one: str, other: str) -> list[float]:
    """USD an hour of the other GPU over the one: each provider of both, and medians of all."""
    by_provider = []
    for gpu in (one, other):
        rates: dict[str, list[float]] = defaultdict(list)
        for row in offers(gpu):
            rates[row.provider].append(row.usd_per_gpu_hour)
            rates["all"].append(row.usd_per_gpu_hour)
        by_provider.append({name: statistics.median(found) for name, found in rates.items()})
    here, there = by_provider
    return [there[name] / here[name] for name in sorted(here.keys() & there.keys())]


def model(run: Measurement) -> str:
    return run.model


def workload(run: Measurement) -> str:
    return run.workload


def answer_rows(group: str, asked: Iterable[Asked], *, is_load_told: bool) -> pl.DataFrame:
    """One row per pair and direction: what was measured, what was expected; output tokens/s."""
    rows = [
        {
            "group": group,
            "is_load_told": is_load_told,
            "model": one.model,
            "from_gpu": one.gpu,
            "to_gpu": other.gpu,
            "gpus": one.gpus,
            "dtype": one.dtype,
            "to_dtype": other.dtype,
            "measured_from": one.output_tokens_per_second,
            "measured_to": other.output_tokens_per_second,
            "low": found.low,
            "mid": found.mid,
            "high": found.high,
        }
        for one, other, found in asked
    ]
    return pl.DataFrame(rows)


def write_table() -> None:
    """The answers with the whole model left out, as `data/tuning/whatif_backtest.csv`."""
    groups = {
        "saturated": saturated_pairs(saturated_runs()),
        "light load": light_pairs(),
        "vLLM of 2024": list(table_pairs(PAIRS_2024)),
    }
    held_back = list(table_pairs(HELD_BACK))
    tables = [
        answer_rows(name, answers(pairs, model, is_load_told=told), is_load_told=told)
        for told in (False, True)
        for name, pairs in groups.items()
    ]
    tables += [
        answer_rows("held back", answers(held_back, None, is_load_told=told), is_load_told=told)
        for told in (False, True)
    ]
    pl.concat(tables).write_csv(shipped("data/tuning") / "whatif_backtest.csv", float_precision=6)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the table of notebook 08")
    if parser.parse_args().write:
        write_table()
        return
    saturated = saturated_pairs(saturated_runs())
    light, old = light_pairs(), list(table_pairs(PAIRS_2024))
    held_back = list(table_pairs(HELD_BACK))
    report("model left out, saturated", answers(saturated, model))
    report("source left out, saturated", answers(saturated, source))
    report("workload left out, saturated", answers(saturated, workload))
    for told in (False, True):
        words = "the load told" if told else "the load not told"
        report(f"model left out, light loads, {words}", answers(light, model, is_load_told=told))
        report(f"model left out, vLLM of 2024, {words}", answers(old, model, is_load_told=told))
        report(f"source left out, vLLM of 2024, {words}", answers(old, source, is_load_told=told))
        report(
            f"model left out, all of these, {words}",
            answers([*saturated, *light, *old], model, is_load_told=told),
        )
        report(f"held back from everything, {words}", answers(held_back, None, is_load_told=told))


if __name__ == "__main__":
    main()
