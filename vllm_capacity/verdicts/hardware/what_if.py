"""What another GPU would achieve: throughput and latencies there, from a measurement here.

1. *Refuse* questions outside the domain (`question.refusal`): the weights do not fit, no sequence
   fits beside them, the GPU cannot run the weight type, the context is too long.
2. *Published pairs first* (`published`). If both GPUs were published for this model, types, GPU
   count, lengths and a load with about the measured rate, the answer is the measured rate × their
   ratio, and its label *tested*.
3. *Otherwise scale*: calculate the seconds per token on either GPU (`serving`), and carry over the
   measured time that the GPU does not explain (host, load generator, eager mode; `carried`). The
   ratio from data sheets (`data_sheet`) has little weight if kernels of both were timed and much if
   not (`side.SHEET_SHARE`). Published pairs of the same model at other lengths correct the ratio,
   more with more pairs. If no load is given, a rate far below what the GPU could give is attributed
   to the clients.
4. *Another load* on the other side (`Question.at`): from the measured load by the calculated ratio
   on that side.
5. The band is the measured error of this method on models left out of its fit, by class: whether
   the GPU explains the measured time, whether the load is given (`band.BANDS`), and how near the
   nearest published case is (*near* or *far*). `python -m bench.whatif` measures it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.estimate import Estimate, Figures, Kind
from vllm_capacity.facts.prices import usual_forms
from vllm_capacity.facts.throughput import Measurement, measurements, silicon_measurements
from vllm_capacity.verdicts.hardware.band import (
    FULLY_LIGHT,
    LIGHT_HALF_WIDTH,
    MAX_GROWN,
    SAME_RATE,
    SAME_RATE_UNDER_CLIENTS,
    half_width,
    is_latent,
    reach,
    widened,
)
from vllm_capacity.verdicts.hardware.choice import Choice
from vllm_capacity.verdicts.hardware.data_sheet import Shares, SheetSide, log_ratio
from vllm_capacity.verdicts.hardware.published import (
    NEAR,
    Case,
    correction,
    measured_ratio,
    nearest_case,
)
from vllm_capacity.verdicts.hardware.question import Load, Question, refusal
from vllm_capacity.verdicts.hardware.serving import (
    Calibration,
    is_native,
    kv_room_bytes,
    saturated_batch,
    shipped_calibration,
)
from vllm_capacity.verdicts.hardware.side import (
    Forms,
    Side,
    kernel_words,
    machines_of,
    sheet_share,
    side,
    side_at,
    side_words,
)

GROWN = 0.045
"""How much more output grows than calculated, in logarithms per factor e of running requests.

From the lightest loads of the silicon rows, which the fit has seen, to heavier ones. Beyond
`MAX_GROWN` it grows as calculated.
"""
LIGHT_LOADS = {False: (0.6, 0.1), True: (0.3, 0.08)}
"""The shares of the calculated rate from which, and down to which, a load counts as light.

By whether the clients are given. If they are, the calculation already uses their number: a rate so
low is due to the load generator.
"""
MAX_TIMES_MEASURED = 2.0
"""How far a measured rate may exceed the calculated one.

Of published runs left out of the fit, the highest was 1.7 × the calculated rate.
"""
MAX_BELIEVED = 10.0
"""A rate above this multiple of the calculated one is refused; below, prompts may be cached."""
CLOSED_SHARE = 0.6
"""The weight of reading a light load as a fixed number of clients, as in load tests.

The other reading, that users arrive at the same rate, is within the band.
"""
SERVED_HALF_WIDTH = 0.08
"""Half the band, in logarithms, if all requests are served: runs of one load differ that much."""
TTFT_HALF_WIDTH = 0.45
"""Half the band of a time to first token: the median error of any method is about 15 %."""
TESTED, NEARBY, FAR, SAME = "tested", "near", "far", "same"


class GpuUtilization(Struct, frozen=True):
    """The share of its GPU's data sheet that the engine used, 0..1 (estimated_*_per_gpu)."""

    flops_ratio: float
    bandwidth_ratio: float

    @property
    def is_counted(self) -> bool:
        """Whether the counters moved; a server without the option leaves them at 0."""
        return self.flops_ratio > 0 and self.bandwidth_ratio > 0


class Split(Figures, frozen=True):
    """A number of replicas with a number of GPUs per engine: their total output, and the latencies.

    Latencies are those of any replica, each under its share of the load.
    """

    gpus_per_engine: int
    replicas: int
    output_tokens_per_second: Estimate
    itl_seconds: Estimate
    ttft_seconds: Estimate


class WhatIf(Figures, frozen=True):
    """What another GPU would achieve, and how certain that is.

    `label`: *tested* (a published pair answers it), *near* or *far* by the `distance` of the
    `nearest` published case, *same* if the setup is unchanged, empty if nothing is known.
    `explained_ratio` is the share of the measured time that the calculation explains; the rest is
    carried over. Latencies are means, unknown if no load is given. If a number of GPUs was asked
    about, `splits` are its splits, best first, and the figures are those of the best. `choice` is
    which of both GPUs gives more tokens per dollar, and what would change that, if both prices are
    known and both are asked under one load; else None. The attributes of `output_tokens_per_second`
    are also attributes of this object.
    """

    output_tokens_per_second: Estimate
    itl_seconds: Estimate
    ttft_seconds: Estimate
    label: str = ""
    explained_ratio: float | None = None
    nearest: Case | None = None
    splits: tuple[Split, ...] = ()
    choice: Choice | None = None

    @classmethod
    def unknown(cls, reason: str) -> WhatIf:
        """An unknown answer, with its reason."""
        nothing = Estimate.unknown(reason)
        return cls(nothing, nothing, nothing)

    @property
    def low(self) -> float | None:
        """The low end of the throughput."""
        return self.output_tokens_per_second.low

    @property
    def mid(self) -> float | None:
        """The middle of the throughput."""
        return self.output_tokens_per_second.mid

    @property
    def high(self) -> float | None:
        """The high end of the throughput."""
        return self.output_tokens_per_second.high

    @property
    def reason(self) -> str:
        """Why the throughput is unknown; empty if it is known."""
        return self.output_tokens_per_second.reason

    @property
    def is_known(self) -> bool:
        """Whether the throughput is known."""
        return self.output_tokens_per_second.is_known

    @property
    def basis(self) -> tuple[str, ...]:
        """The basis of the throughput."""
        return self.output_tokens_per_second.basis

    @property
    def sources(self) -> str:
        """The basis in one line."""
        return self.output_tokens_per_second.sources

    def as_dict(self) -> dict[str, Any]:
        """The keys of the throughput, then the fields of this object."""
        return {**self.output_tokens_per_second.as_dict(), **super().as_dict()}


def carried(here: float, there: float, measured: float) -> float:
    """Seconds on the other GPU: the calculated ones, and the time not explained here.

    `here` and `there` are calculated. Of the measured time beyond `here`, as much as the slower of
    the two is carried over unchanged (a host is not faster with another GPU). More than that is
    scaled, because then the calculation is off. So is a measured time below `here`.
    """
    rest = max(measured - here, 0.0)
    capped = min(rest, max(here, there))
    return there * (min(measured, here) + rest - capped) / here + capped


def shipped_what_if(question: Question) -> WhatIf:
    """`what_if` with the published runs and form factors from the shipped tables."""
    spans = question.from_gpu, question.to_gpu
    prefer = {span.rows[0].gpu: usual_forms(span.name) for span in spans}
    return what_if(question, published=published_runs(), prefer=prefer)


def published_runs() -> tuple[Measurement, ...]:
    """All published runs that a what-if looks up."""
    return (*measurements(), *silicon_measurements())


def what_if(
    question: Question,
    *,
    published: Sequence[Measurement] = (),
    prefer: Forms | None = None,
    busy: GpuUtilization | None = None,
    calibration: Calibration | None = None,
    shares: Shares | None = None,
) -> WhatIf:
    """What the other GPU achieves: throughput and latencies with their basis, or why unknown.

    `published` are the runs to look up and to correct by. In a span of form factors, the first that
    `prefer` names for that GPU gives the middle (else the one with the most bandwidth). `busy` is
    the measured engine's own utilization: it then has half the weight in the scaling.
    """
    if reason := refusal(question):
        return WhatIf.unknown(reason)
    found = calibration or shipped_calibration(), shares or Shares()
    return _Asking(question, published, prefer or {}, busy, *found).answer


class _Asking(Struct, frozen=True, dict=True):
    """One question, the data that answers it, and both sides as calculated."""

    question: Question
    published: Sequence[Measurement]
    prefer: Forms
    busy: GpuUtilization | None
    calibration: Calibration
    shares: Shares

    @cached_property
    def froms(self) -> list[Side]:
        """The possible machines of the measured GPU, at the load of the measurement."""
        job, clients = self.question.job_here, self.question.load.clients
        found = machines_of(job, self.question.from_gpu, self.prefer)
        whole = [side(job, machine, self.calibration, clients=clients) for machine in found]
        if self.question.at is None or clients is not None or self.question.load.is_capacity:
            return whole
        return [self._lightened(each) for each in whole]

    @cached_property
    def tos(self) -> list[Side]:
        """The possible machines of the other GPU, at the load of the question."""
        job, clients = self.question.job_there, self.question.load_there.clients
        found = machines_of(job, self.question.to_gpu, self.prefer)
        return [side(job, machine, self.calibration, clients=clients) for machine in found]

    def _lightened(self, whole: Side) -> Side:
        """A side at the batch that gives the measured rate, if no clients are given."""
        batch = self.batch_for(self.question.output_tokens_per_second, whole)
        return self.at_batch(whole, batch)

    def at_batch(self, whole: Side, batch: float) -> Side:
        """A side with another number of running sequences."""
        return side_at(whole.job, whole.machine, whole.rates, self.calibration, batch)

    def batch_for(self, rate: float, whole: Side) -> float:
        """The running sequences that give a rate, at most the side's; 1 if even one exceeds it."""
        low, high = 1.0, whole.batch
        if self.at_batch(whole, low).rate >= rate:
            return low
        for _ in range(30):
            middle = math.sqrt(low * high)
            is_less = self.at_batch(whole, middle).rate < rate
            low, high = (middle, high) if is_less else (low, middle)
        return high

    @cached_property
    def machines(self) -> list[tuple[Side, Side]]:
        """Every pair of machines that the question may mean, the likeliest first."""
        same = self.question.from_gpu == self.question.to_gpu
        return [
            (one, other)
            for one in self.froms
            for other in self.tos
            if not same or one.machine == other.machine
        ]

    @property
    def answer(self) -> WhatIf:
        """The whole answer."""
        question = self.question
        if reason := self._unbelievable():
            return WhatIf.unknown(reason)
        if question.is_same_setup and question.load_there == question.load:
            words = "measured: the same GPU and type"
            exact = Estimate.exact(question.output_tokens_per_second, words)
            return self._whole(exact, SAME)
        found, label = self._throughput()
        if not is_native(question.to_dtype, question.to_gpu.rows[0]):
            found = replace(found, basis=(*found.basis, *self._widened_words(found)))
        return self._whole(self._capped(found), label)

    def _whole(self, found: Estimate, label: str) -> WhatIf:
        itl, ttft = self._latencies(found)
        one = self.froms[0]
        measured = 1 / self.question.output_tokens_per_second
        return WhatIf(
            output_tokens_per_second=found,
            itl_seconds=itl,
            ttft_seconds=ttft,
            label=label,
            explained_ratio=min(one.seconds_per_token / measured, 1.0),
            nearest=self.nearest,
        )

    @cached_property
    def nearest(self) -> Case | None:
        """The published case nearest to the question."""
        return nearest_case(self.question, self.published)

    def _unbelievable(self) -> str:
        """Why nothing can be scaled from a rate impossible on the measured GPU; else empty."""
        question, measured = self.question, self.question.output_tokens_per_second
        job, clients = question.job_here, question.load.clients
        rate = max(
            side(job, machine, self.calibration, clients=clients).rate
            for machine in machines_of(job, question.from_gpu, self.prefer)
        )
        if measured <= MAX_BELIEVED * rate:
            return ""
        return (
            f"{measured:,.6g} output tokens/s is more than {MAX_BELIEVED:g} × the {rate:,.3g} "
            f"calculated for {question.gpus} × {question.from_gpu.label}, so nothing can be scaled "
            "from it. Check the GPU and its count, the weight type, the token counts and the "
            "clients"
        )

    def _throughput(self) -> tuple[Estimate, str]:
        """Output tokens per second there, and its label."""
        question = self.question
        found = measured_ratio(question, self.published) if question.is_alike else None
        if found and question.load.is_known:
            return found, TESTED
        scaled = self._scaled()
        if found:
            return self._unless_light(found, scaled), TESTED
        return scaled, self.label

    @property
    def label(self) -> str:
        """How near a scaled answer is to something measured."""
        return NEARBY if self.is_near else FAR

    @cached_property
    def is_near(self) -> bool:
        """Whether a published case is near, and both chips' kernels were timed (or fitted)."""
        if self.question.is_same_setup:
            return self.is_timed
        return self.is_timed and self.nearest is not None and self.nearest.distance <= NEAR

    @cached_property
    def is_timed(self) -> bool:
        """Whether the kernels of both chips were timed, or fitted to published runs."""
        return all(each.rates.is_timed for each in (self.froms[0], self.tos[0]))

    def _unless_light(self, found: Estimate, scaled: Estimate) -> Estimate:
        """A measured pair; if its load was light, widened to include what scaling gives.

        The question's load need not be the light one.
        """
        full = replace(self.question, load=Load(is_capacity=True))
        if measured_ratio(full, self.published) or scaled.mid is None or found.low is None:
            return found
        low, mid, high = found.low, found.mid or found.low, found.high or found.low
        words = "a light load: another load of that rate may scale as calculated instead"
        return replace(
            found,
            low=min(low, scaled.mid),
            mid=mid,
            high=max(high, scaled.mid),
            basis=(*found.basis, words),
        )

    def _scaled(self) -> Estimate:
        gains = [self._gain(one, other) for one, other in self.machines]
        if self.busy and self.busy.is_counted:
            counted = [_utilization_log(self.busy, one, other) for one, other in self.machines]
            gains = [(a + b) / 2 for a, b in zip(gains, counted, strict=True)]
        one, other = self.machines[0]
        lightness = self.lightness(one)
        shift, weight = self._correction()
        shift *= 1 - lightness
        middle = gains[0] + shift
        fade = min(lightness / FULLY_LIGHT, 1.0)
        half = (1 - fade) * half_width(self.question, one, other, middle) + fade * LIGHT_HALF_WIDTH
        half += math.log(_excess(self.question, one))
        half = widened(
            half, self.question, one, other, is_near=self.is_near, is_timed=self.is_timed
        )
        is_load_known = self.question.load.clients is not None
        past = SAME_RATE_UNDER_CLIENTS if is_load_known else SAME_RATE
        down, up = reach(half, gains, gain=middle, fade=fade, past=past)
        mid = self.question.output_tokens_per_second * math.exp(middle)
        words = self._basis(one, other, weight=weight)
        ends = mid * math.exp(-down), mid, mid * math.exp(up)
        return Estimate.known(*ends, *words, kind=Kind.EXTRAPOLATED)

    def _correction(self) -> tuple[float, float]:
        """What published pairs of the model add to the logarithm of the ratio, and their weight."""
        if not self.question.is_alike:
            return 0.0, 0.0

        def by_arithmetic(asked: Question) -> float:
            other = replace(self, question=asked, busy=None)
            return other._gain(*other.machines[0])

        return correction(self.question, self.published, by_arithmetic)

    def _gain(self, one: Side, other: Side) -> float:
        """The logarithm of the rate there over the measured rate, between these two machines."""
        question = self.question
        rate = question.output_tokens_per_second
        if question.at is not None:
            return self._gain_elsewhere(one, other)
        here, there, measured = one.seconds_per_token, other.seconds_per_token, 1 / rate
        if question.is_kept_up:
            measured = min(measured, here)
        saturated = -math.log(rate * carried(here, there, measured))
        saturated = self._beside_sheets(one, other, saturated)
        lightness = self.lightness(one)
        if not lightness:
            return saturated
        closed = saturated
        if not question.load.is_known:
            clients = self.batch_for(rate, one)
            then = self.at_batch(other, min(clients, other.batch))
            closed = math.log(then.rate / self.at_batch(one, clients).rate)
        open_load = min(0.0, math.log(one.rate / rate) + saturated)
        light = CLOSED_SHARE * closed + (1 - CLOSED_SHARE) * open_load
        return lightness * light + (1 - lightness) * saturated

    def _gain_elsewhere(self, one: Side, other: Side) -> float:
        """`_gain` if the other side is asked under another load.

        First the measured load is moved there, carrying over the time that the GPU does not
        explain; then that load is changed to the one asked about, by the calculated ratio, because
        the calculation is off by about the same factor at both loads.
        """
        rate = self.question.output_tokens_per_second
        alike = self.at_batch(other, min(one.batch, self.most_running(other)))
        measured = one.batch / rate
        there = carried(one.sequence_seconds, alike.sequence_seconds, measured)
        gain = math.log(alike.batch / there / rate)
        there = alike.batch / rate * math.exp(-self._beside_sheets(one, alike, gain))
        seconds = there * other.sequence_seconds / alike.sequence_seconds
        apart = math.log(other.batch / one.batch)
        grown = GROWN * max(min(apart, MAX_GROWN), -MAX_GROWN)
        return math.log(other.batch / seconds / rate) + grown

    def _beside_sheets(self, one: Side, other: Side, gain: float) -> float:
        """The weighted mean of a gain by timed kernels and by data sheets.

        If the measured GPU served all requests, the data sheets give the rate it could have
        reached.
        """
        here, there = (_by_sheets(each, self.shares) for each in (one, other))
        by_sheets = log_ratio(here, there)
        if self.question.is_kept_up:
            rate = self.question.output_tokens_per_second
            by_sheets += max(math.log(here.output_tokens_per_second / rate), 0.0)
        share = sheet_share(one, other)
        return (1 - share) * gain + share * by_sheets

    def most_running(self, other: Side) -> float:
        """The most sequences that a side admits under any load."""
        return saturated_batch(other.job, other.machine, offered=math.inf)

    def lightness(self, one: Side) -> float:
        """How far a rate is attributed to the clients, 0 to 1: see `LIGHT_LOADS`.

        0 if the question says that the measured GPU was at capacity, or served all requests.
        """
        question = self.question
        if question.load.is_capacity or question.is_kept_up or question.at is not None:
            return 0.0
        light, idle = LIGHT_LOADS[question.load.clients is not None]
        share = question.output_tokens_per_second / one.rate
        if share >= light:
            return 0.0
        return min(math.log(light / share) / math.log(light / idle), 1.0)

    def _capped(self, found: Estimate) -> Estimate:
        """At most what an open load demands, if the question has one."""
        question = self.question
        load = question.load_there
        offered = question.offered_by(load)
        if offered is None or found.low is None or found.mid is None or found.high is None:
            return found
        is_kept = question.is_kept_up and load == question.load
        cap = question.output_tokens_per_second if is_kept else offered
        if found.high <= cap:
            return found
        half = SERVED_HALF_WIDTH + (self._tail(offered) if is_kept else 0.0)
        low, mid = min(found.low, cap * math.exp(-half)), min(found.mid, cap)
        words = f"{load.requests_per_second:g} requests/s need no more than {cap:.4g} tokens/s"
        if found.low > cap:
            gpu = question.to_gpu.label
            words += f", and {gpu} could produce {found.low:.3g} to {found.high:.3g}"
        high = cap * math.exp(SERVED_HALF_WIDTH)
        return replace(found, low=low, mid=mid, high=high, basis=(words, *found.basis))

    def _tail(self, offered: float) -> float:
        """The loss of a slower GPU, in logarithms, from requests unfinished when a load test ends.

        An open load of the measured GPU ends with some requests still running. The longer each
        takes, the more there are, in proportion to the running requests at that rate (Little's
        law). 0 for servers that lose nothing, or a faster GPU.
        """
        one, other, rate = self.froms[0], self.tos[0], self.question.output_tokens_per_second
        longer = self.batch_for(rate, other) / self.batch_for(rate, one) - 1
        return max(math.log(offered / rate), 0.0) * max(longer, 0.0)

    def _latencies(self, found: Estimate) -> tuple[Estimate, Estimate]:
        """Mean seconds between tokens and to the first token there; unknown with the reason."""
        load, other = self.question.load_there, self.tos[0]
        if found.mid is None or found.low is None or found.high is None:
            return (Estimate.unknown(found.reason),) * 2
        if load.clients is None and load.requests_per_second is None:
            reason = "no load given: give clients (--clients) or requests/s (--requests-per-second)"
            return (Estimate.unknown(reason),) * 2
        running = other.batch
        if load.requests_per_second is not None:
            running = self.batch_for(found.mid, other)
        there = self.at_batch(other, running)
        seconds = running / found.mid
        ttft = self._ttft(there, seconds)
        itl = self._itl(seconds, ttft)
        half = math.log(found.high / found.low) / 2
        basis = f"{running:.3g} running at {found.mid:,.4g} output tokens/s"
        words = f"{basis}: requests in flight ÷ rate, minus the time to first token"
        if load.clients is not None and running < load.clients:
            words += f"; the other {load.clients - running:.3g} clients wait"
            waits = "clients wait for KV cache, so their time to first token depends on the queue"
            return _around(itl, half, words), Estimate.unknown(waits)
        ttft_words = (
            f"{basis}: calculated steps of the prompt; the median error of any method is 15 %"
        )
        return _around(itl, half, words), _around(ttft, TTFT_HALF_WIDTH, ttft_words)

    def _ttft(self, there: Side, seconds: float) -> float:
        """Mean seconds to the first token, as calculated, corrected by the measurement here.

        What the calculation does not explain (the server's front end, the network) is carried over.
        """
        question = self.question
        if question.ttft_seconds is None:
            off = seconds / there.sequence_seconds
            return there.ttft_seconds * min(max(off, 0.5), 2.0)
        return carried(self.froms[0].ttft_seconds, there.ttft_seconds, question.ttft_seconds)

    def _itl(self, seconds: float, ttft: float) -> float:
        """Mean seconds between tokens of a sequence that takes `seconds` per token in total."""
        question, output = self.question, self.question.output_tokens
        if question.itl_seconds is not None and question.load.clients is not None:
            here = self.froms[0].batch / question.output_tokens_per_second
            return question.itl_seconds * seconds / here
        if output <= 1:
            return seconds
        return max(seconds * output - ttft, 0.3 * seconds * output) / (output - 1)

    def _basis(self, one: Side, other: Side, *, weight: float) -> Iterator[str]:
        question = self.question
        yield (
            f"scaled from {question.output_tokens_per_second:,.6g} output tokens/s measured on "
            f"{question.gpus} × {question.from_gpu.label} ({question.dtype}) to "
            f"{question.gpus_there} × {question.to_gpu.label} ({question.to_dtype})"
        )
        here, there = question.load.clients, question.load_there.clients
        yield f"{side_words(one, here)}, then {side_words(other, there)}"
        if one.job.llm != question.llm or other.job.llm != question.llm:
            yield f"KV cache in {question.kv_dtype}, then {question.kv_dtype_there}"
        yield from self._explained_words(one)
        for each in dict.fromkeys((kernel_words(one), kernel_words(other))):
            if each:
                yield each
        if share := sheet_share(one, other):
            yield (
                f"based {(1 - share) * 100:.0f} % on timed kernels and {share * 100:.0f} % on data "
                "sheets"
            )
        if is_latent(question):
            yield (
                "latent attention: only its kernel was timed, and no published run of such a model "
                "validates the estimate, so the band is wider"
            )
        if weight:
            yield f"corrected by published pairs of this model (weight {weight:.1f})"
        if self.lightness(one):
            yield self._light_words(one)
        if _excess(question, one) > 1:
            yield (
                f"the measured rate is {question.output_tokens_per_second / one.rate:.1f} × the "
                f"calculated one on {question.from_gpu.label}, so the band is wider; were prompts "
                "cached, or was the setup different?"
            )
        if self.nearest is not None:
            yield f"rated {self.label}: {self.nearest.description}"

    def _explained_words(self, one: Side) -> Iterator[str]:
        measured = 1 / self.question.output_tokens_per_second
        if self.question.at is not None or self.question.is_kept_up:
            return
        share = one.seconds_per_token / measured
        if share < 1:
            yield (
                f"the GPU explains {share * 100:.0f} % of the measured time; the rest (host, load "
                "generator, eager mode) is kept unchanged"
            )

    def _light_words(self, one: Side) -> str:
        here, there = self.question.from_gpu.label, self.question.to_gpu.label
        if not self.question.load.is_known:
            return (
                f"light load: {here} could produce {one.rate:,.0f} tokens/s at saturation, so the "
                f"clients were the limit; {there} is estimated between the same rate and the same "
                "number of clients"
            )
        return (
            f"{here} could produce {one.rate:,.0f} tokens/s under that load; something unknown "
            f"limits it, so {there} is estimated between the same rate and the full gain"
        )

    def _widened_words(self, found: Estimate) -> Iterator[str]:
        """What a weight type does on a GPU without its tensor cores, and why it may be faster."""
        question = self.question
        one, other = self.machines[0]
        gpu, dtype = other.machine.gpu, question.to_dtype
        if dtype in ("fp8", "int8", "nvfp4"):
            words = "weights are widened to 16 bits, which saves no compute"
            yield f"{gpu.name} has no {dtype} tensor cores: {words}"
        else:
            yield f"vLLM widens {dtype} weights to 16 bits, which saves no compute"
        wide = question.job_as("bf16")
        if kv_room_bytes(wide, other.machine) <= 0:
            yield "still faster than 16 bits, because 16-bit weights leave no room for KV cache"
            return
        sixteen = replace(self, question=replace(question, to_dtype="bf16"))
        answer = what_if(
            sixteen.question,
            published=self.published,
            prefer=self.prefer,
            busy=self.busy,
            calibration=self.calibration,
            shares=self.shares,
        )
        if answer.mid is not None and found.mid is not None and found.mid > answer.mid:
            plain = sixteen.machines[0][1]
            why = "published pairs of this model show it"
            if self._gain(one, other) > sixteen._gain(one, plain):
                why = _why_smaller_is_faster(plain, other)
            yield f"still faster than 16 bits, because {why}"


def _by_sheets(each: Side, shares: Shares) -> SheetSide:
    return SheetSide(each.job, each.machine, each.batch, shares)


def _around(mid: float, half: float, words: str) -> Estimate:
    """An estimate with `half` on either side, in logarithms."""
    ends = mid * math.exp(-half), mid, mid * math.exp(half)
    return Estimate.known(*ends, words, kind=Kind.EXTRAPOLATED)


def _excess(question: Question, one: Side) -> float:
    """By what factor the measured rate exceeds the limit for published runs; at least 1."""
    return max(question.output_tokens_per_second / one.rate / MAX_TIMES_MEASURED, 1.0)


def _utilization_log(busy: GpuUtilization, one: Side, other: Side) -> float:
    """The logarithm of the ratio from the engine's own utilization, at the same batch.

    Of each second on the measured GPU, compute took FLOPS used ÷ FLOPS reachable, and memory took
    bandwidth used ÷ bandwidth reachable. Both scale with what kernels reach; the rest (the host)
    does not.
    """
    here, there = one.rates.kernels.dense, other.rates.kernels.dense
    flops = one.machine.tensor_tflops * 1e12
    moved = one.machine.gpu.bandwidth_bytes_per_second
    compute = min(busy.flops_ratio * flops / here.flops_per_second, 1.0)
    memory = min(busy.bandwidth_ratio * moved / here.bytes_per_second, 1.0)
    core = max(compute, memory)
    scaled = max(
        compute * here.flops_per_second / there.flops_per_second,
        memory * here.bytes_per_second / there.bytes_per_second,
    )
    return -math.log(scaled + (1 - core))


def _why_smaller_is_faster(sixteen: Side, other: Side) -> str:
    if other.batch > sixteen.batch:
        return (
            "smaller weights are read faster and leave KV cache for "
            f"{other.batch:.0f} sequences instead of {sixteen.batch:.0f}"
        )
    return "reading weights takes much of the time, and smaller weights are read faster"
