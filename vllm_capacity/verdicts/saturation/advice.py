"""What to change before buying a GPU: the setting that costs most, or nothing.

Each piece of advice is based on what the window showed and has a bounded effect:

- *scheduler-bound*: a larger `max_num_seqs` lets more requests run, up to where the KV cache would
  be full and no more than were waiting. The effect is how far the curve still rises up to there.
- *kv-bound*: more KV memory (a larger `gpu_memory_utilization`, an fp8 KV cache). The effect is
  that of twice the memory, or of as much as the queue could fill.
- *prefill-bound*: a larger `max_num_batched_tokens`; also caching if prefix caching is off or has
  few hits. vLLM exports neither the budget nor how similar prompts are: their effect is unknown.
- *idle replicas*: how many of them the busiest time did not need (`verdicts/sizing.py`).

If clients set the pace, no server setting limits throughput, and there is no advice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from vllm_capacity.estimate import Estimate, Kind
from vllm_capacity.record import Record
from vllm_capacity.verdicts.saturation import regimes
from vllm_capacity.verdicts.saturation.arrays import Floats, is_seen, summed
from vllm_capacity.verdicts.saturation.curve import PRIOR, LoadPoints, Prior, extrapolated_peak
from vllm_capacity.verdicts.saturation.fit import SaturationFit
from vllm_capacity.verdicts.sizing import Surplus

MAX_NUM_SEQS = "max_num_seqs"
KV_MEMORY = "KV memory"
PREFIX_CACHING = "prefix caching"
BATCHED_TOKENS = "max_num_batched_tokens"
REPLICAS = "replicas"

_LOW_HIT_RATIO = 0.1
_MIN_LIMITED_SHARE = 0.05
_NO_LOSS = Prior(kv_loss=0.0)


class Advice(Record, frozen=True):
    """A setting to change: on which engine (or "fleet"), why, and the expected effect.

    `effect` is the share of throughput gained; for replicas, the share of the bill saved.
    """

    setting: str
    engine: str
    evidence: str
    effect: Estimate


def advice(
    fits: Sequence[SaturationFit],
    *,
    prefix_cache_hit_ratio: float | None = None,
    surplus: Surplus | None = None,
) -> tuple[Advice, ...]:
    """What to change, the largest known effect first; empty if no setting limits throughput.

    An engine is judged by its bottleneck, if that held for 5 % of its busy time or more. Without a
    `surplus` there is no advice on the number of replicas.
    """
    found = [one for fit in fits for one in _engine_advice(fit, prefix_cache_hit_ratio)]
    found += _idle_replicas(surplus) if surplus else []
    return tuple(sorted(found, key=lambda one: -(one.effect.mid or one.effect.low or 0.0)))


def _engine_advice(fit: SaturationFit, hit_ratio: float | None) -> list[Advice]:
    limit = fit.bottleneck
    if limit is None:
        return []
    steps, limited = fit.steps, fit.steps.is_in(limit)
    busy = summed(steps.seconds[~steps.is_in(regimes.IDLE)])
    seconds = summed(steps.seconds[limited])
    if seconds < _MIN_LIMITED_SHARE * busy:
        return []
    share = f"{limit} for {seconds:,.0f} s, {100 * seconds / busy:.0f} % of its busy time"
    running, waiting = _mean(steps.running_mean[limited]), _mean(steps.waiting_mean[limited])
    queue = f"{share}; {running:,.1f} requests ran and {waiting:,.1f} waited"
    if limit == regimes.SCHEDULER:
        most = min(running + waiting, fit.kv_limit_running or math.inf)
        room = "" if fit.kv_limit_running is None else f"; the KV cache has room for {most:,.0f}"
        gain = _gain(fit, running, most)
        return [Advice(MAX_NUM_SEQS, fit.engine, f"{queue}{room}.", gain)] if most > running else []
    if limit == regimes.KV:
        gain = _gain(fit, running, min(running + waiting, 2 * running), is_preempting=True)
        found = [Advice(KV_MEMORY, fit.engine, f"{queue}. Effect of doubling KV memory.", gain)]
    else:
        unknown = Estimate.unknown("vLLM does not export its token budget or the size of a batch")
        found = [Advice(BATCHED_TOKENS, fit.engine, f"{queue}.", unknown)]
    return found + _prefix_caching(fit.engine, share, hit_ratio)


def _prefix_caching(engine: str, share: str, hit_ratio: float | None) -> list[Advice]:
    if hit_ratio is None or hit_ratio >= _LOW_HIT_RATIO:
        return []
    evidence = f"{share}; {100 * hit_ratio:.0f} % of looked-up prompt tokens were found cached."
    effect = Estimate.unknown(
        "vLLM does not export how much prompts have in common: only a trial shows it"
    )
    return [Advice(PREFIX_CACHING, engine, evidence, effect)]


def _gain(
    fit: SaturationFit, running: float, target: float, *, is_preempting: bool = False
) -> Estimate:
    """The relative gain in throughput at `target` running requests over that at `running`.

    Predicted from the bend of the curve below the limit; no more than in proportion to load. If
    requests are preempted, the curve is raised above what was sustained by the cost of preemptions.
    """
    if not fit.capacity.is_known or fit.capacity.mid is None or running <= 0 or target <= running:
        return Estimate.unknown("the current capacity is not known")
    own = fit.levels.loads
    is_lighter = own.running < 0.95 * running
    loss, doubt = (PRIOR.kv_loss, PRIOR.kv_loss_error) if is_preempting else (0.0, 0.0)
    loads = LoadPoints.of(
        [*own.running[is_lighter], running],
        [*own.output[is_lighter], fit.capacity.mid * (1 + loss)],
        [*own.error[is_lighter], doubt],
    )
    peak_estimate = extrapolated_peak(loads, target, prior=_NO_LOSS)
    if peak_estimate is None:
        return Estimate.unknown("too few lighter loads were observed to show how the curve bends")
    proportional = target / running - 1
    low, mid, high = (
        float(np.clip(end / fit.capacity.mid - 1, 0.0, proportional))
        for end in (peak_estimate.low, peak_estimate.mid, peak_estimate.high)
    )
    basis = f"the curve from {running:,.1f} to {target:,.1f} running requests"
    return Estimate.known(low, mid, high, basis, kind=Kind.EXTRAPOLATED)


def _idle_replicas(found: Surplus) -> list[Advice]:
    """The replicas that the busiest time did not need, if there certainly are any."""
    removable = found.removable_replicas
    if not removable.low:
        return []
    asked = found.busiest_output_tokens_per_second.high or 0.0
    stay = found.replicas - removable.low
    evidence = (
        f"the busiest time needed {asked:,.0f} output tokens/s; {stay:,.0f} of "
        f"{found.replicas:,.0f} replicas provide that, with "
        f"{found.policy.headroom_ratio * 100:.0f} % headroom, and {found.policy.spare_replicas} "
        "may fail."
    )
    saved = removable.scaled(1 / found.replicas, "replicas not needed ÷ replicas, all at one price")
    return [Advice(REPLICAS, "fleet", evidence, saved)]


def _mean(values: Floats) -> float:
    """The mean of the observed values, each step counting once; 0 without any."""
    seen = values[is_seen(values)]
    return summed(seen) / len(seen) if len(seen) else 0.0
