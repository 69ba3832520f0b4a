"""The simulation loop of one engine: it runs the steps and updates the metrics after each.

A step is scheduled when the previous one ends, and its results count when it ends itself. Requests
that arrive during a step wait for the next one. In decode-only periods nothing but token counts can
change: they are taken in one leap, with the same results as step by step.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable

import numpy as np

from vllm_simulator.config import EngineConfig, EngineRequest, Request, check_request
from vllm_simulator.scheduler import Batch, Scheduler
from vllm_simulator.stats import Gauges, Stats

_MIN_LEAP_STEPS = 8  # a shorter vectorized leap costs more than the steps it saves


FollowUp = Callable[[Request, float], Request | None]


def nothing_more(request: Request, ended_seconds: float) -> Request | None:
    """None: an open loop has no follow-up requests."""
    return None


class Jitter:
    """Log-normal factors with mean 1, one per step; leaps do not change the sequence."""

    def __init__(self, ratio: float, seed: int) -> None:
        self._ratio = ratio
        self._rng = np.random.default_rng(seed)
        self._drawn = np.ones(0)
        self._used = 0

    def next(self) -> float:
        """Consume and return the next factor."""
        factor = float(self.peek(1)[0])
        self._used += 1
        return factor

    def skip(self, count: int) -> None:
        """Consume the next `count` factors."""
        self._used += count

    def peek(self, count: int) -> np.ndarray:
        """The next `count` factors, without consuming them."""
        if self._used + count > self._drawn.size:
            more = self._rng.normal(size=4096 + count)
            factors = np.exp(self._ratio * more - self._ratio**2 / 2)
            self._drawn = np.concatenate([self._drawn[self._used :], factors])
            self._used = 0
        return self._drawn[self._used : self._used + count]


class Engine:
    """A simulated engine: `advance` moves its clock, `stats` is what a scrape reads."""

    def __init__(
        self,
        config: EngineConfig,
        *,
        seed: int = 0,
        follow_up: FollowUp = nothing_more,
        on_end: Callable[[EngineRequest], None] | None = None,
        can_leap: bool = True,
    ) -> None:
        self.config = config
        self.stats = Stats(config)
        self.scheduler = Scheduler(config)
        self.clock = 0.0
        self._jitter = Jitter(config.step_time.jitter_ratio, seed)
        self._follow_up = follow_up
        self._on_end = on_end
        self._can_leap = can_leap
        self._inbox: list[tuple[float, int, Request]] = []
        self._deadlines: list[tuple[float, int, EngineRequest]] = []
        self._pending: tuple[float, Batch] | None = None
        self._submitted = 0
        self._accepted = 0

    @property
    def load(self) -> int:
        """Number of requests running, waiting or yet to arrive."""
        return len(self.scheduler.running) + len(self.scheduler.waiting) + len(self._inbox)

    @property
    def is_idle(self) -> bool:
        """Whether no request is running, waiting or yet to arrive."""
        return not (self._inbox or self._pending or self._has_work)

    @property
    def _has_work(self) -> bool:
        return bool(self.scheduler.running or self.scheduler.waiting)

    def submit(self, request: Request) -> None:
        """Submit a request; the engine takes it at its arrival, or at the end of a running step."""
        check_request(request, self.config)
        self._submitted += 1
        heapq.heappush(self._inbox, (request.arrival_seconds, self._submitted, request))

    def advance(self, until: float) -> None:
        """Run up to and including `until`; a step that ends later has no results yet."""
        while True:
            if self._pending is not None:
                if self._pending[0] > until:
                    return
                self._commit(*self._pending)
                self._pending = None
            self._accept_arrivals()
            self._drop_cancelled()
            if not self._has_work:
                if not self._inbox or self._inbox[0][0] > until:
                    return
                self.clock = max(self.clock, self._inbox[0][0])
            elif not self._leap(until):
                self._begin_step()

    def _accept_arrivals(self) -> None:
        while self._inbox and self._inbox[0][0] <= self.clock:
            _, _, spec = heapq.heappop(self._inbox)
            self._accepted += 1
            request = EngineRequest(spec, self._accepted, spec.prompt_tokens, queued_at=self.clock)
            self.scheduler.waiting.append(request)
            if spec.cancel_after_seconds is not None:
                deadline = spec.arrival_seconds + spec.cancel_after_seconds
                heapq.heappush(self._deadlines, (deadline, self._accepted, request))

    def _drop_cancelled(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= self.clock:
            _, _, request = heapq.heappop(self._deadlines)
            if not request.is_done:
                self.scheduler.remove(request)
                self._end(request)
                self._snapshot()

    def _begin_step(self) -> None:
        batch = self.scheduler.schedule()
        for request in batch.admitted:
            request.scheduled_at = self.clock
            self.stats.admitted(request)
        mean = self.config.step_time.seconds(
            batch.decodes + len(batch.prefills), batch.prefill_tokens, batch.context_tokens
        )
        self._pending = (self.clock + mean * self._jitter.next(), batch)

    def _commit(self, end: float, batch: Batch) -> None:
        stats, scheduler = self.stats, self.scheduler
        seconds = end - self.clock
        stats.engine_steps += 1
        stats.busy_seconds += seconds
        self.clock = end
        scheduler.end_step(1, end)
        if batch.decodes:
            stats.itl.observe(seconds, batch.decodes)
        ended = scheduler.finished()
        outputs, computed_tokens = batch.decodes, 0
        for request, tokens in batch.prefills:
            request.computed += tokens
            if request.computed == request.total:  # otherwise a prompt chunk, without output
                outputs += 1
                computed_tokens += self._first_token(request)
                if request.generated == request.spec.output_tokens:
                    scheduler.remove(request)
                    ended.append(request)
                else:
                    scheduler.start_decoding(request)
        stats.preemptions += batch.preemptions
        if outputs:
            stats.generation_tokens += outputs
            stats.iteration_tokens.observe(outputs + computed_tokens)
        for request in ended:
            stats.finish(request)
            self._end(request)
        self._snapshot()

    def _first_token(self, request: EngineRequest) -> int:
        """Record the token that ends a prefill; returns the prompt tokens counted as computed.

        After a preemption it is an ordinary, late token, and recomputed tokens are not counted.
        """
        computed_tokens = 0
        if request.first_at is None:
            request.first_at = self.clock
            since_arrival = self.clock - request.spec.arrival_seconds
            self.stats.first_token(request, since_arrival + self.config.frontend_seconds)
            computed_tokens = request.spec.prompt_tokens - request.cached_tokens
        else:
            self.stats.itl.observe(self.clock - request.last_at)
        request.last_at = self.clock
        request.generated += 1
        request.total += 1
        return computed_tokens

    def _end(self, request: EngineRequest) -> None:
        if self._on_end is not None:
            self._on_end(request)
        following = self._follow_up(request.spec, self.clock)
        if following is not None:
            self.submit(following)

    def _snapshot(self) -> None:
        scheduler = self.scheduler
        self.stats.gauges = Gauges(
            len(scheduler.running), len(scheduler.waiting), scheduler.pool.usage_ratio
        )

    def _leap(self, until: float) -> bool:
        """Take many decode steps at once, up to the next moment at which anything else can happen.

        Does nothing and returns False if that is too soon, or a request waits or is in prefill.
        """
        scheduler = self.scheduler
        if not self._can_leap or not scheduler.only_decodes:
            return False
        horizon = min(until, self._inbox[0][0] if self._inbox else math.inf)
        horizon = min(horizon, self._deadlines[0][0] if self._deadlines else math.inf)
        count, time = scheduler.decoding, self.config.step_time
        first = time.seconds(count, 0, scheduler.context_tokens)
        steps = scheduler.steps_without_event(_steps_within(horizon - self.clock, first))
        if steps < _MIN_LEAP_STEPS:
            return False
        means = first + np.arange(steps) * (count * time.per_context_token_seconds)
        ends = self.clock + np.cumsum(means * self._jitter.peek(steps))
        taken = int(np.searchsorted(ends, horizon, side="right"))
        if taken:
            self._take_leap(ends[:taken], count)
        return taken > 0

    def _take_leap(self, ends: np.ndarray, count: int) -> None:
        stats, scheduler, steps = self.stats, self.scheduler, ends.size
        self._jitter.skip(steps)
        scheduler.grow_through(scheduler.step + steps)
        stats.itl.observe_each(np.diff(ends, prepend=self.clock), count)
        stats.iteration_tokens.observe(count, steps)
        stats.generation_tokens += count * steps
        stats.engine_steps += steps
        stats.busy_seconds += float(ends[-1]) - self.clock
        self.clock = float(ends[-1])
        scheduler.end_step(steps, self.clock)
        self._snapshot()


def _steps_within(seconds: float, step_seconds: float) -> int:
    """Upper bound on the steps that fit, at most 10,000: a far horizon would draw millions."""
    return 10_000 if math.isinf(seconds) else min(10_000, math.ceil(seconds / step_seconds) + 1)
