"""How close the what-if is to published runs that its fit has not seen.

`python -m bench.whatif [--write]`. Whole models, or whole sources, are left out of the fit and of
the look-up; every pair of GPUs is asked in both directions. It prints, for each kind of question,
the error, how many truths lie inside the band, its width, and how often the card with more tokens
per dollar is named: by the middle of every answer, and of the answers whose whole band is on one
side of the prices. For silicon it prints, too, how near anybody could come who knew each setup's
median. Then, by class, how far nine in ten errors reach into the bands of
`verdicts/hardware/band.py`. With --write it writes the answers to
`data/tuning/whatif_backtest.csv` and the factors of each fit to `data/tuning/whatif_factors.csv`,
which notebook 08 reads.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path

from msgspec import Struct
from msgspec.structs import replace

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import polars as pl
from whatif_calibration import Fit
from whatif_runs import (
    HELD_BACK,
    NOT_STATED,
    PAIRS_2024,
    Pair,
    every_run,
    is_one_version,
    kv_dtype,
    light_pairs,
    load_of,
    machine_of,
    saturated_pairs,
    saturated_runs,
    silicon_pairs,
    silicon_runs,
    silicon_sweeps,
    source,
    sweep_ends,
    table_pairs,
)
from whatif_shares import fit as fit_shares

from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.prices import offers, prices
from vllm_capacity.facts.throughput import Measurement, measurements
from vllm_capacity.resources import shipped
from vllm_capacity.verdicts.hardware.band import EXPLAINED
from vllm_capacity.verdicts.hardware.data_sheet import Shares
from vllm_capacity.verdicts.hardware.elsewhere import (
    MAX_TIMES,
    moved_curve,
    of_version,
    within_targets,
)
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.serving import (
    Calibration,
    Job,
    rates,
    shipped_calibration,
)
from vllm_capacity.verdicts.hardware.side import side
from vllm_capacity.verdicts.hardware.slo_from_light import within_from_light
from vllm_capacity.verdicts.hardware.unloaded import in_production
from vllm_capacity.verdicts.hardware.what_if import TESTED, WhatIf, published_runs, what_if
from vllm_capacity.verdicts.saturation.slo import SloLoad

PREFER = {"H100-80GB": ("SXM",), "A100-80GB": ("SXM",)}
TOSS_UP = 0.05
"""Prices at which the two GPUs' tokens per dollar differ by less are not counted."""
CONFIDENCE = 0.9
MIN_PAIRS = 10
"""Pairs of GPUs with a winner shown by fewer pairs of runs say little about the GPUs."""
OUTLIER = "0.16.0"
"""One engine (MiniMax on 4 × H200, no flags), about 18 % slower than its runs elsewhere suggest."""


Worth = Callable[[str, str], list[float]]
"""The ratios of prices of two GPUs: the other's over the one's."""


class Asked(Struct, frozen=True):
    """A measurement on one GPU, on the other, and the estimate for the other."""

    one: Measurement
    other: Measurement
    question: Question
    found: WhatIf

    @property
    def off(self) -> float:
        """The logarithm of the expected rate over the measured one."""
        return math.log(self.found.mid / self.other.output_tokens_per_second)

    @property
    def is_inside(self) -> bool:
        return self.found.low <= self.other.output_tokens_per_second <= self.found.high

    @property
    def kind(self) -> str:
        return " and ".join(sorted((self.one.gpu, self.other.gpu)))


class LeftOut:
    """The calibrations of fits that have not seen a model or a source, each made once."""

    def __init__(self) -> None:
        self.fit = Fit(list(every_run()))
        self.whole = self.fit.fit(np.ones(len(self.fit.runs), bool))
        self.known: dict[tuple[str, str], tuple[Calibration, Shares]] = {}

    def of(self, name: str, value: str) -> tuple[Calibration, Shares]:
        if (name, value) not in self.known:
            named = {
                "model": lambda run: run.job.llm.model,
                "source": lambda run: run.source,
                "count": lambda run: f"{run.job.llm.model} on {run.job.gpus}",
            }[name]
            out = np.array([named(run) == value for run in self.fit.runs])
            logs = self.fit.fit(~out, self.whole) if out.any() else self.whole
            shares, _ = fit_shares(lambda run: OF[name](run) == value)
            self.known[name, value] = self.fit.calibration(logs), shares
        return self.known[name, value]


def question_from(one: Measurement, other: Measurement, *, is_load_given: bool) -> Question:
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
        load=load_of(one) if is_load_given else Load(),
    )


def answers(
    pairs: Iterable[Pair],
    fits: LeftOut | None,
    left_out: str,
    *,
    is_load_given: bool,
    is_kv_given: bool = False,
) -> list[Asked]:
    """Both directions of each pair, asked without the runs that share what is left out."""
    found = []
    for pair in pairs:
        known, fitted = published_runs(), (shipped_calibration(), Shares())
        if fits is not None:
            left = OF[left_out](pair[0])
            known = tuple(run for run in known if OF[left_out](run) != left)
            fitted = fits.of(left_out, left)
        for one, other in (pair, pair[::-1]):
            asked = question_from(one, other, is_load_given=is_load_given)
            if is_kv_given:
                asked = replace(asked, kv_dtype=kv_dtype(one), to_kv_dtype=kv_dtype(other))
            found.append(Asked(one, other, asked, _ask(asked, known, fitted)))
    return found


def _ask(
    asked: Question, known: Sequence[Measurement], fitted: tuple[Calibration, Shares]
) -> WhatIf:
    calibration, shares = fitted
    return what_if(asked, published=known, prefer=PREFER, calibration=calibration, shares=shares)


def model(run: Measurement) -> str:
    return run.model


def count(run: Measurement) -> str:
    return f"{run.model} on {run.gpus}"


OF: Mapping[str, Callable[[Measurement], str]] = {"model": model, "source": source, "count": count}
"""For each run, the keys that can be left out of a fit."""


def report(name: str, asked: Sequence[Asked], worth: Worth | None = None) -> None:
    known = [each for each in asked if each.found.is_known]
    errors = [math.expm1(abs(each.off)) for each in known]
    kinds: dict[str, list[float]] = defaultdict(list)
    for each, error in zip(known, errors, strict=True):
        kinds[each.kind].append(error)
    by_kind = statistics.mean(statistics.median(errors) for errors in kinds.values())
    widths = [each.found.high / each.found.low for each in known]
    right = winner_right(known, worth=worth)
    print(
        f"{name}: {len(known)} answered, {len(asked) - len(known)} refused; error "
        f"{statistics.median(errors):.1%} (median), {by_kind:.1%} (median, mean over "
        f"{len(kinds)} pairs of GPUs), {statistics.mean(errors):.1%} (mean); inside "
        f"{statistics.mean(each.is_inside for each in known):.0%}, median high/low "
        f"{statistics.median(widths):.2f}, cheaper card right {right:.0%}; "
        f"{surely_right(known, worth)}"
    )


def winner_right(
    asked: Iterable[Asked],
    middles: Mapping[int, float] | None = None,
    worth: Worth | None = None,
) -> float:
    """How often tokens per dollar rank the two as measured: the mean over pairs and winners.

    `middles` are other answers (output tokens per second) to the same questions, by `id`.
    """
    wins = wins_right(asked, middles, worth)
    return statistics.mean(statistics.mean(right) for right in wins.values()) if wins else math.nan


def wins_right(
    asked: Iterable[Asked],
    middles: Mapping[int, float] | None = None,
    worth: Worth | None = None,
) -> dict[tuple[str, str], list[bool]]:
    """By pair of GPUs and the one that gave more tokens per dollar: whether it was named."""
    wins: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for each, price, ratio in price_questions(asked, worth):
        middle = each.found.mid if middles is None else middles[id(each)]
        winner = each.other if ratio > 1 else each.one
        says = middle / each.one.output_tokens_per_second > price
        wins[each.kind, winner.gpu].append((ratio > 1) == says)
    return wins


def price_questions(
    asked: Iterable[Asked], worth: Worth | None = None
) -> Iterator[tuple[Asked, float, float]]:
    """Each answer at each ratio of prices, that ratio, and what was measured over it.

    Without those where it is a toss-up. `worth` gives the ratios (None: `price_ratios`).
    """
    for each in asked:
        rate = each.one.output_tokens_per_second
        for price in (worth or price_ratios)(each.one.gpu, each.other.gpu):
            ratio = each.other.output_tokens_per_second / rate / price
            if abs(math.log(ratio)) >= TOSS_UP:
                yield each, price, ratio


def often_right(asked: Iterable[Asked], worth: Worth | None = None) -> str:
    """`winner_right` of those pairs of GPUs and winners that enough pairs of runs show."""
    runs: dict[tuple[str, str], set[frozenset[Measurement]]] = defaultdict(set)
    answers_ = list(asked)
    for each, _, ratio in price_questions(answers_, worth):
        winner = each.other if ratio > 1 else each.one
        runs[each.kind, winner.gpu].add(frozenset((each.one, each.other)))
    wins = wins_right(answers_, worth=worth)
    enough = [right for key, right in wins.items() if len(runs[key]) >= MIN_PAIRS]
    share = statistics.mean(map(statistics.mean, enough)) if enough else math.nan
    return (
        f"  (cheaper card right {share:.0%} over the {len(enough)} of {len(wins)} cells of at "
        f"least {MIN_PAIRS} pairs of runs)"
    )


def surely_right(asked: Iterable[Asked], worth: Worth | None = None) -> str:
    """How many price questions the bands decide, and how many of those correctly."""
    right, count = [], 0
    for each, price, ratio in price_questions(asked, worth):
        count += 1
        low, high = (
            end / each.one.output_tokens_per_second for end in (each.found.low, each.found.high)
        )
        if low > price or high < price:
            right.append((ratio > 1) == (low > price))
    if not right:
        return "no band decides a price"
    share = statistics.mean(right)
    return f"{len(right) / count:.0%} of prices decided by the band, {share:.0%} right"


def knowing(asked: Sequence[Asked], words: str, setup: Callable[[Asked], object]) -> None:
    """How close the median of the measured ratios of a setup is: the best that its name can give.

    What is left is what runs of one setup differ by: versions, flags, chance.
    """
    gains: dict[object, list[float]] = defaultdict(list)
    for each in asked:
        gains[setup(each)].append(
            each.other.output_tokens_per_second / each.one.output_tokens_per_second
        )
    middles = {
        id(each): each.one.output_tokens_per_second * statistics.median(gains[setup(each)])
        for each in asked
    }
    kinds: dict[str, list[float]] = defaultdict(list)
    for each in asked:
        off = math.log(middles[id(each)] / each.other.output_tokens_per_second)
        kinds[each.kind].append(math.expm1(abs(off)))
    by_kind = statistics.mean(statistics.median(errors) for errors in kinds.values())
    right = winner_right(asked, middles)
    print(f"  (knowing the median by {words}: {by_kind:.1%}, cheaper card right {right:.0%})")


def price_ratios(one: str, other: str) -> list[float]:
    """USD per hour of the other GPU over the one: each provider of both, and medians of all."""
    by_provider = []
    for gpu in (one, other):
        rates: dict[str, list[float]] = defaultdict(list)
        for row in offers(gpu):
            rates[row.provider].append(row.usd_per_gpu_hour)
            rates["all"].append(row.usd_per_gpu_hour)
        by_provider.append({name: statistics.median(found) for name, found in rates.items()})
    here, there = by_provider
    return [there[name] / here[name] for name in sorted(here.keys() & there.keys())]


def listed_ratios(one: str, other: str) -> list[float]:
    """The same of every provider, tier and day that lists both, costs of owning among them.

    Of several rows of one GPU (regions, least counts) their median.
    """
    by_list = []
    for gpu in (one, other):
        row, rates = find_gpu(gpu).rows[0], defaultdict(list)
        for price in prices():
            if (price.gpu, price.form_factor) == (row.gpu, row.form_factor):
                rates[price.provider, price.tier, price.date].append(price.usd_per_gpu_hour)
        by_list.append({name: statistics.median(found) for name, found in rates.items()})
    here, there = by_list
    return [there[name] / here[name] for name in sorted(here.keys() & there.keys())]


def split_alike(fits: LeftOut) -> None:
    """The silicon pairs that split their experts alike, at every price list that has both GPUs.

    So pairs were counted where the goal was set, on other models. Beside them, what is
    left where the fit has seen the model's weight types on both architectures, as it has those of
    models that nobody here has seen: with another number of GPUs.
    """
    pairs = silicon_pairs(is_split_alike=True)
    found = answers(pairs, fits, "model", is_load_given=True)
    report(
        "model left out, silicon pairs that split their experts alike, the load given",
        found,
        listed_ratios,
    )
    for (kind, winner), right in sorted(wins_right(found, worth=listed_ratios).items()):
        print(f"    {kind}, where {winner} is cheaper: {len(right)}, {statistics.mean(right):.0%}")
    by_bandwidth(found, listed_ratios)
    print(often_right(found, listed_ratios))
    biases(found)
    alike = [each for each in found if is_one_version(each.one, each.other)]
    other = [each for each in found if OUTLIER not in _versions(each)]
    report(f"  without vLLM {OUTLIER}, which ran by its defaults on H200", other, listed_ratios)
    report("  of one vLLM version", alike, listed_ratios)
    by_bandwidth(alike, listed_ratios)
    print(often_right(alike, listed_ratios))
    named = [with_versions(each) for each in found]
    report("  the versions of both sides given", named, listed_ratios)
    stored = answers(pairs, fits, "model", is_load_given=True, is_kv_given=True)
    report("  the types of both KV caches given", stored, listed_ratios)
    seen = answers(pairs, fits, "count", is_load_given=True)
    report("  the same, the model's other numbers of GPUs seen by the fit", seen, listed_ratios)


def with_versions(each: Asked) -> Asked:
    """The same answer, given the vLLM versions of both runs as far as they say which."""
    here, there = _versions(each)
    if NOT_STATED in (here, there):
        return each
    known = [run for run in published_runs() if run.model != each.one.model]
    return replace(each, found=of_version(each.question, each.found, known, here=here, there=there))


def biases(asked: Sequence[Asked]) -> None:
    """The signed error by pair of GPUs, model and versions: whether one GPU is taken for too slow.

    If it were, its errors would have one sign with every model and version.
    """
    found: dict[tuple[str, ...], list[float]] = defaultdict(list)
    for each in asked:
        if each.one.gpu < each.other.gpu:
            setup = f"{each.one.model} {each.one.dtype}", " to ".join(_versions(each))
            found[each.one.gpu, each.other.gpu, *setup].append(each.off)
    for (one, other, *setup), off in sorted(found.items()):
        print(f"    {one} to {other}, {', '.join(setup)}: {len(off)}, {np.median(off):+.3f}")


def by_bandwidth(asked: Sequence[Asked], worth: Worth | None = None) -> None:
    """The estimate by the root of the bandwidths' ratio."""
    kinds: dict[str, list[float]] = defaultdict(list)
    middles = {}
    for each in asked:
        here, there = (find_gpu(run.gpu).rows[0].mem_bw_tb_s for run in (each.one, each.other))
        middles[id(each)] = each.one.output_tokens_per_second * math.sqrt(there / here)
        off = math.log(middles[id(each)] / each.other.output_tokens_per_second)
        kinds[each.kind].append(math.expm1(abs(off)))
    errors = statistics.mean(statistics.median(found) for found in kinds.values())
    whole = statistics.median([error for found in kinds.values() for error in found])
    right = winner_right(asked, middles, worth)
    print(
        f"  (the root of the bandwidths' ratio: {errors:.1%}, of all {whole:.1%}, cheaper card "
        f"right {right:.0%})"
    )


def versions() -> None:
    """How far two versions of vLLM differ on one setup, and the effect on which GPU is cheaper.

    A question that does not name the versions cannot be answered nearer than that.
    """
    setups: dict[object, dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for run in silicon_runs():
        setups[run.model, run.dtype, run.gpus, run.workload, run.clients][run.gpu].append(run)
    apart, changes = [], []
    for sides in setups.values():
        for here, runs in sides.items():
            pairs = [pair for pair in combinations(runs, 2) if len({*map(_version, pair)}) > 1]
            rates = [[run.output_tokens_per_second for run in pair] for pair in pairs]
            apart += [math.expm1(abs(math.log(one / other))) for one, other in rates]
            for there in sides.keys() - {here} if pairs else ():
                for worth in price_ratios(here, there):
                    says = {
                        other.output_tokens_per_second / one.output_tokens_per_second > worth
                        for one in runs
                        for other in sides[there]
                    }
                    changes.append(len(says) > 1)
    print(
        f"  (two versions on one GPU: {len(apart)} pairs, {statistics.median(apart):.1%} apart "
        f"(median), {max(apart):.0%} at most; which GPU is cheaper depends on the version in "
        f"{statistics.mean(changes):.0%} of {len(changes)} prices)"
    )


def _version(run: Measurement) -> str:
    return run.engine_version


def _versions(each: Asked) -> tuple[str, str]:
    return each.one.engine_version, each.other.engine_version


def quantiles(asked: Iterable[Asked]) -> None:
    """The error over half the band that nine in ten do not exceed, by class, models weighing alike.

    1 where the band is as narrow as that allows.
    """
    classes: dict[object, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for each in asked:
        if each.found.is_known and each.found.label != TESTED:
            half = math.log(each.found.high / each.found.low) / 2
            is_explained = each.found.explained_ratio >= 1 / (1 + EXPLAINED)
            key = (is_explained, each.question.load.is_known, each.found.label)
            classes[key][each.one.model].append(abs(each.off) / half)
    for (is_explained, is_load_given, label), models in sorted(classes.items(), key=str):
        errors, weights = [], []
        for found in models.values():
            errors += found
            weights += [1 / len(found)] * len(found)
        order = np.argsort(errors)
        share = np.cumsum(np.array(weights)[order]) / sum(weights)
        place = min(int(np.searchsorted(share, CONFIDENCE)), len(order) - 1)
        at = np.array(errors)[order][place]
        words = "explained" if is_explained else "not explained"
        load = "load given" if is_load_given else "not given"
        print(
            f"  {words}, {load}, {label}: {len(errors)} of {len(models)} models, "
            f"{CONFIDENCE:.0%} within {at:.2f} × half the band"
        )


def elsewhere(fits: LeftOut) -> None:
    """Other loads, on the same GPU and on another, and other GPU counts, of silicon."""
    for few, many in ((4, 64), (8, 64), (16, 64), (4, 128)):
        sweep = partial(_is_asked, clients=(few, many))
        other_setups(f"from {few} clients to {many} on the same GPU", fits, sweep)
    for few, many in ((4, 64), (16, 64)):
        sweep = partial(_is_asked, clients=(few, many), is_other_gpu=True)
        other_setups(f"from {few} clients to {many} on another GPU", fits, sweep)
    for factor in (2.0, 4.0):
        name = f"with {factor:g} times the GPUs, the same clients"
        other_setups(name, fits, partial(_is_asked, factor=factor))
    full_from_lightest(fits)
    within_from_lightest(fits)
    untimed(fits)


def _is_asked(
    one: Measurement,
    other: Measurement,
    *,
    clients: tuple[int, int] | None = None,
    factor: float = 1.0,
    is_other_gpu: bool = False,
) -> bool:
    """Whether one row is asked about the other; versions may differ where the GPUs do."""
    kind = (one.model, one.dtype, one.workload)
    if kind != (other.model, other.dtype, other.workload) or other.gpus != factor * one.gpus:
        return False
    if is_other_gpu == (one.gpu == other.gpu):
        return False
    if not is_other_gpu and one.engine_version != other.engine_version:
        return False
    loads = (one.clients, other.clients)
    return loads == clients if clients else one.clients == other.clients


def full_from_lightest(fits: LeftOut) -> None:
    """Servers that were never loaded: each sweep's lightest load to its heaviest, if given."""
    ends = [(one, other) for one, other in sweep_ends() if other.clients <= MAX_TIMES * one.clients]
    other_loads("from the lightest load of a sweep to its heaviest", fits, ends, in_production)


def within_from_lightest(fits: LeftOut) -> None:
    """The same within latency targets, of the sweep's means, read where its own curve crosses them.

    Targets lie between the latencies of neighboring heavier loads: of the inter-token latency, of
    the time to first token, and of both.
    """
    found: dict[str, list[tuple[Estimate, float]]] = defaultdict(list)
    for runs in silicon_sweeps():
        one, *_ = runs
        result = [run for run in runs if run.clients <= MAX_TIMES * one.clients]
        fitted = dict(zip(("calibration", "shares"), fits.of("model", one.model), strict=True))
        asked = replace(
            question_from(one, one, is_load_given=True),
            itl_seconds=one.mean_tpot_ms / 1e3,
            ttft_seconds=one.mean_ttft_ms / 1e3,
        )
        for name, itl_ms, ttft_ms in _both_targets(result):
            loads = [_slo_load(run, itl_ms, ttft_ms) for run in result]
            truth = within_targets(loads)
            if truth is not None and truth[1]:
                ask = partial(what_if, **fitted)
                within = within_from_light(asked, loads[0], ask, widen=in_production, is_p95=False)
                found[name].append((within.output_tokens_per_second, truth[0]))
    for name, answers_ in found.items():
        known = [(each, truth) for each, truth in answers_ if each.is_known]
        bounds = [each.low <= truth for each, truth in answers_ if not each.is_known]
        off = [math.log(each.mid / truth) for each, truth in known]
        print(
            f"model left out, from the lightest load of a sweep to {name}: {len(answers_)} "
            f"questions, {len(known)} intervals, error {math.expm1(np.median(np.abs(off))):.1%} "
            f"(median), bias {np.mean(off):+.2f}, inside "
            f"{np.mean([each.low <= truth <= each.high for each, truth in known]):.0%}, median "
            f"high/low {np.median([each.high / each.low for each, _ in known]):.2f}; "
            f"{sum(bounds)} of {len(bounds)} bounds true"
        )


def _both_targets(
    runs: Sequence[Measurement],
) -> Iterator[tuple[str, float | None, float | None]]:
    """Targets of heavier loads that the lightest of a sweep meets: ITL and TTFT, milliseconds."""
    least, *heavier = runs
    for before, after in pairwise(heavier):
        itl, ttft = (
            math.sqrt(of(before) * of(after))
            if of(after) > 1.05 * of(before) and of(before) > 1.05 * of(least)
            else None
            for of in (_itl_ms, _ttft_ms)
        )
        if itl:
            yield "an ITL target", itl, None
        if ttft:
            yield "a TTFT target", None, ttft
        if itl and ttft:
            yield "both", itl, ttft


def _itl_ms(run: Measurement) -> float:
    return run.mean_tpot_ms


def _ttft_ms(run: Measurement) -> float:
    return run.mean_ttft_ms


def _slo_load(run: Measurement, itl_ms: float | None, ttft_ms: float | None) -> SloLoad:
    return SloLoad(
        float(run.clients),
        run.output_tokens_per_second,
        None if itl_ms is None else run.mean_tpot_ms / itl_ms,
        None if ttft_ms is None else run.mean_ttft_ms / ttft_ms,
    )


def untimed(fits: LeftOut) -> None:
    """Runs by arithmetic alone where no kernel of the weight type was timed on the GPU."""
    shares: dict[tuple[str, str, str], list[tuple[float, str]]] = defaultdict(list)
    for run in measurements():
        if math.isfinite(run.offered_requests_per_second):
            continue
        machine, llm = machine_of(run), find_llm(run.model)
        job = Job(llm, run.dtype, run.gpus, run.input_tokens, run.output_tokens)
        if rates(machine, llm, run.dtype, shipped_calibration()).lent:
            found = side(job, machine, fits.of("model", run.model)[0], clients=run.clients)
            load = "saturated" if run.clients is None else f"{run.clients} clients"
            share = run.output_tokens_per_second / found.rate
            shares[run.dtype, machine.gpu.family, load].append((share, run.model))
    for (dtype, family, load), found in sorted(shares.items()):
        of = [share for share, _ in found]
        print(
            f"model left out, {dtype} on {family}, which was never timed, {load}: {len(of)} runs "
            f"of {len({name for _, name in found})} models gave {min(of):.2f} to {max(of):.2f} of "
            f"the arithmetic (median {statistics.median(of):.2f})"
        )


def other_setups(
    name: str, fits: LeftOut, is_asked: Callable[[Measurement, Measurement], bool]
) -> None:
    runs = silicon_runs()
    other_loads(name, fits, [(a, b) for a in runs for b in runs if is_asked(a, b)])


def other_loads(
    name: str,
    fits: LeftOut,
    pairs: Iterable[Pair],
    of: Callable[[Estimate], Estimate] = lambda found: found,
) -> None:
    """How near one run of each pair comes to the other, asked under the other's load and count.

    `of` is what is made of the answer.
    """
    errors, inside, widths = [], [], []
    for one, other in pairs:
        asked = replace(
            question_from(one, other, is_load_given=True),
            at=Load(clients=float(other.clients)),
            to_gpus=other.gpus,
        )
        known = tuple(run for run in published_runs() if run.model != one.model)
        answer = _ask(asked, known, fits.of("model", one.model))
        found = of(answer.output_tokens_per_second)
        if not found.is_known:
            continue
        truth = other.output_tokens_per_second
        errors.append(math.log(found.mid / truth))
        inside.append(found.low <= truth <= found.high)
        widths.append(found.high / found.low)
    print(
        f"model left out, {name}: {len(errors)} questions, "
        f"error {math.expm1(np.median(np.abs(errors))):.1%} (median), bias {np.mean(errors):+.2f}, "
        f"inside {np.mean(inside):.0%}, median high/low {np.median(widths):.2f}; nine in ten "
        f"within {np.quantile(np.abs(errors), CONFIDENCE):.2f}"
    )


def latencies(asked: Sequence[Asked]) -> None:
    """Inter-token latency and time to first token on the other GPU, given those on the first."""
    for name, of in (("itl", "mean_tpot_ms"), ("ttft", "mean_ttft_ms")):
        errors, inside = [], []
        for each in asked:
            found = getattr(each.found, f"{name}_seconds")
            if found.is_known and getattr(each.other, of):
                truth = getattr(each.other, of) / 1e3
                errors.append(abs(math.log(found.mid / truth)))
                inside.append(found.low <= truth <= found.high)
        print(
            f"  {name} on the other GPU: {len(errors)}, error "
            f"{math.expm1(statistics.median(errors)):.1%} (median), inside "
            f"{statistics.mean(inside):.0%}"
        )


def moved_curves(fits: LeftOut) -> None:
    """Throughput within an ITL target on the other GPU, by scaling the whole measured curve.

    Of each sweep that was measured on two GPUs: targets between the inter-token latencies of
    neighboring loads on the other one, where both curves meet and miss them.
    """
    sweeps: dict[object, dict[str, list[Measurement]]] = defaultdict(lambda: defaultdict(list))
    for run in silicon_runs():
        sweeps[run.model, run.dtype, run.gpus, run.workload][run.gpu].append(run)
    errors, alike, plain, asked = [], [], [], 0
    for (name, *_), sides in sweeps.items():
        ask = partial(
            what_if,
            published=tuple(run for run in published_runs() if run.model != name),
            calibration=fits.of("model", name)[0],
            shares=fits.of("model", name)[1],
        )
        for here, there in ((a, b) for a in sides for b in sides if a != b):
            one, other = (_one_version(sides[gpu]) for gpu in (here, there))
            for target in _targets(other):
                truth = within_targets(_slo_loads(other, target))
                if truth is None or not truth[1]:
                    continue
                asked += 1
                question = question_from(one[0], other[0], is_load_given=True)
                loads = _slo_loads(one, target)
                found = within_targets(moved_curve(question, loads, ask))
                if found is not None and found[1]:
                    errors.append(abs(math.log(found[0] / truth[0])))
                    if is_one_version(one[0], other[0]):
                        alike.append(errors[-1])
                at_here = within_targets(loads)
                if at_here is not None and at_here[1]:
                    most = question_from(one[-1], other[-1], is_load_given=True)
                    gain = ask(most).mid / most.output_tokens_per_second
                    plain.append(abs(math.log(at_here[0] * gain / truth[0])))
    print(
        f"model left out, within an ITL target, by moving the curve: {len(errors)} of {asked} "
        f"answered, error {math.expm1(statistics.median(errors)):.1%} (median); of one version "
        f"{len(alike)}, {math.expm1(statistics.median(alike)):.1%}; by the ratio of "
        f"the heaviest loads: {len(plain)} answered, {math.expm1(statistics.median(plain)):.1%}"
    )


def _one_version(runs: Sequence[Measurement]) -> list[Measurement]:
    """The runs of the version with most loads, lightest first, one a load."""
    versions: dict[str, dict[int, Measurement]] = defaultdict(dict)
    for run in runs:
        versions[run.engine_version].setdefault(run.clients, run)
    most = max(versions.values(), key=len)
    return [most[clients] for clients in sorted(most)]


def _targets(runs: Sequence[Measurement]) -> Iterator[float]:
    for before, after in pairwise(runs):
        if after.mean_tpot_ms > 1.05 * before.mean_tpot_ms:
            yield math.sqrt(before.mean_tpot_ms * after.mean_tpot_ms)


def _slo_loads(runs: Sequence[Measurement], itl_ms: float) -> tuple[SloLoad, ...]:
    return tuple(
        SloLoad(float(run.clients), run.output_tokens_per_second, run.mean_tpot_ms / itl_ms)
        for run in runs
    )


def with_latencies(asked: Sequence[Asked], fits: LeftOut) -> list[Asked]:
    """The same questions, given the latencies that were measured with the rate."""
    found = []
    for each in asked:
        question = replace(
            each.question,
            itl_seconds=each.one.mean_tpot_ms / 1e3,
            ttft_seconds=each.one.mean_ttft_ms / 1e3,
        )
        known = tuple(run for run in published_runs() if run.model != each.one.model)
        answer = _ask(question, known, fits.of("model", each.one.model))
        found.append(replace(each, question=question, found=answer))
    return found


def _setup(each: Asked) -> object:
    one, other = each.one, each.other
    return one.gpu, other.gpu, one.model, one.dtype, one.gpus


def answer_rows(group: str, asked: Iterable[Asked]) -> pl.DataFrame:
    """One row per pair and direction: what was measured, what was expected; output tokens/s."""
    return pl.DataFrame(
        [
            {
                "group": group,
                "is_load_given": each.question.load.is_known,
                "model": each.one.model,
                "from_gpu": each.one.gpu,
                "to_gpu": each.other.gpu,
                "gpus": each.one.gpus,
                "dtype": each.one.dtype,
                "to_dtype": each.other.dtype,
                "from_version": each.one.engine_version,
                "to_version": each.other.engine_version,
                "measured_from": each.one.output_tokens_per_second,
                "measured_to": each.other.output_tokens_per_second,
                "low": each.found.low,
                "mid": each.found.mid,
                "high": each.found.high,
                "label": each.found.label,
                "explained_ratio": each.found.explained_ratio,
            }
            for each in asked
        ]
    )


def factor_rows(fits: LeftOut) -> pl.DataFrame:
    """One row per fit and factor: the model left out ("none": with all), and what it is."""
    every = {"none": fits.fit.calibration(fits.whole)} | {
        value: found for (name, value), (found, _) in fits.known.items() if name == "model"
    }
    return pl.DataFrame(
        [
            {
                "model_left_out": left,
                "architecture": architecture,
                "kernel": kernel,
                "dtype": dtype,
                "flops_factor": flops,
                "bytes_factor": moved,
                "seconds_factor": seconds,
            }
            for left, found in every.items()
            for (architecture, kernel, dtype), (flops, moved, seconds) in found.factors.items()
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true", help="write the tables of notebook 08")
    is_written = parser.parse_args().write
    fits = LeftOut()
    groups = {
        "silicon": silicon_pairs(),
        "saturated": saturated_pairs(saturated_runs()),
        "light load": light_pairs(),
        "vLLM of 2024": list(table_pairs(PAIRS_2024)),
    }
    every: list[Asked] = []
    tables = []
    split_alike(fits)
    for name, pairs in groups.items():
        for result in (True, False):
            words = "the load given" if result else "the load not given"
            found = answers(pairs, fits, "model", is_load_given=result)
            every += found
            tables.append(answer_rows(name, found))
            report(f"model left out, {name}, {words}", found)
            if name == "silicon":
                alike = [each for each in found if is_one_version(each.one, each.other)]
                report(f"  of one vLLM version, {words}", alike)
            if name == "silicon" and result:
                other = [each for each in found if OUTLIER not in _versions(each)]
                report(f"  without vLLM {OUTLIER}, which ran by its defaults on H200", other)
                by_bandwidth(found)
                versions()
                knowing(found, "model, type and GPUs", _setup)
                knowing(found, "those and clients", lambda each: (_setup(each), each.one.clients))
                latencies(with_latencies(found, fits))
            if name in ("saturated", "vLLM of 2024"):
                found = answers(pairs, fits, "source", is_load_given=result)
                report(f"source left out, {name}, {words}", found)
    for result in (True, False):
        words = "the load given" if result else "the load not given"
        found = answers(list(table_pairs(HELD_BACK)), None, "model", is_load_given=result)
        tables.append(answer_rows("held back", found))
        report(f"held back from everything, {words}", found)
    moved_curves(fits)
    elsewhere(fits)
    print("errors over half the band, models left out:")
    quantiles(every)
    if is_written:
        folder = shipped("data/tuning")
        pl.concat(tables).write_csv(folder / "whatif_backtest.csv", float_precision=6)
        factor_rows(fits).write_csv(folder / "whatif_factors.csv")


if __name__ == "__main__":
    main()
