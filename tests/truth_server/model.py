"""A continuous-batching server: first come first served, chunked prefill, KV blocks, preemption.

While nothing is prefilled or admitted, the batch is constant until the next finish, arrival,
snapshot or shortage of blocks: those steps are advanced at once. Steps are never split: what comes
during one is seen at its end, and a snapshot shows the state after the last whole step.

A request decodes one token a step, so its end is known as a step number when it begins; when its
blocks are due is known by the phase of its length within a block.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tests.truth_server.servers import BLOCK_TOKENS, Mix, Server

INF = math.inf
_DRAWS = 4096
_MAX_STEPS = 4096

LATENCY = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
TTFT = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
ITL = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
ITERATION = tuple(float(n) for n in (1, 8, *(2**k for k in range(4, 15))))
TOKENS = tuple(float(d * 10**p) for p in range(4) for d in (1, 2, 5))
BOUNDS = {
    "time_to_first_token_seconds": TTFT,
    "inter_token_latency_seconds": ITL,
    "request_time_per_output_token_seconds": ITL,
    "e2e_request_latency_seconds": LATENCY,
    "request_queue_time_seconds": LATENCY,
    "request_inference_time_seconds": LATENCY,
    "request_prefill_time_seconds": LATENCY,
    "request_decode_time_seconds": LATENCY,
    "iteration_tokens_total": ITERATION,
    "request_prompt_tokens": TOKENS,
    "request_generation_tokens": TOKENS,
}
HISTOGRAMS = tuple(BOUNDS)


class Histogram:
    """Counts per bucket, the overflow last, and the sum."""

    __slots__ = ("bounds", "counts", "edges", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.edges = np.array(bounds, float)
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def add_each(self, values: np.ndarray, times: int) -> None:
        first, last = (bisect_left(self.bounds, float(end)) for end in (values.min(), values.max()))
        if first == last:
            self.counts[first] += times * len(values)
        else:
            found = np.bincount(self.edges.searchsorted(values) - first).tolist()
            for bucket, count in enumerate(found, first):
                self.counts[bucket] += count * times
        self.total += float(values.sum()) * times

    def state(self) -> tuple[tuple[int, ...], float]:
        return tuple(self.counts), self.total


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way. `target` is what must be prefilled before its next token."""

    arrival: float
    prompt: int
    output: int
    client: int = -1
    generated: int = 0
    target: int = 0
    computed: int = 0
    scheduled: float = -1.0
    first: float = -1.0
    last: float = -1.0
    decode_from: int = -1  # step at which it began to decode; -1: not yet
    preemptions: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What `/metrics` would say. `histograms` in the order of `HISTOGRAMS`: (counts, sum)."""

    running: int
    waiting: int
    kv_ratio: float
    generation_tokens: int
    prompt_tokens: int
    stopped: int
    cut: int
    preemptions: int
    histograms: tuple[tuple[tuple[int, ...], float], ...]


@dataclass(frozen=True)
class Arrivals:
    """Open load: times, ascending; lengths are the mix's."""

    times: np.ndarray


@dataclass(frozen=True)
class Clients:
    """Closed load: `schedule` of (time, so many clients), each asking again when answered.

    A client thinks an exponential `think_seconds` between answers; new ones begin within `stagger`.
    """

    schedule: tuple[tuple[float, int], ...]
    think_seconds: float = 0.0
    stagger_seconds: float = 1.0


@dataclass(frozen=True)
class Slow:
    """A stretch in which every step takes `factor` times as long: a noisy neighbor."""

    start: float
    end: float
    factor: float


class Feed:
    """Requests that a load balancer sends while the engine runs, in the order of their arrival."""

    def __init__(self) -> None:
        self._sent: deque[Request] = deque()

    def __len__(self) -> int:
        return len(self._sent)

    def send(self, request: Request) -> None:
        self._sent.append(request)

    def peek(self) -> float:
        return self._sent[0].arrival if self._sent else INF

    def pop_until(self, now: float) -> list[Request]:
        found = []
        while self.peek() <= now:
            found.append(self._sent.popleft())
        return found

    def finished(self, request: Request, now: float) -> None:
        """Nobody waits for the answer to ask again."""


class _Source:
    """The arrivals still to come: open times, and clients that come back."""

    def __init__(
        self, mix: Mix, load: Sequence[Arrivals | Clients], rng: np.random.Generator
    ) -> None:
        self._mix, self._rng = mix, rng
        open_times = [one.times for one in load if isinstance(one, Arrivals)]
        self._times = np.sort(np.concatenate(open_times)).tolist() if open_times else []
        self._next = 0
        self._clients = next((one for one in load if isinstance(one, Clients)), None)
        self._heap: list[tuple[float, int, int]] = []
        self._active, self._busy = 0, set[int]()
        self._count = 0
        if self._clients is not None:
            for i, (at, _) in enumerate(self._clients.schedule):
                self._push(at, -1 - i)
        self._lengths: Iterator[tuple[int, int]] = iter(())

    def peek(self) -> float:
        opened = self._times[self._next] if self._next < len(self._times) else INF
        return min(opened, self._heap[0][0]) if self._heap else opened

    def pop_until(self, now: float) -> list[Request]:
        """The requests that have come by `now`, in order."""
        found: list[Request] = []
        while self.peek() <= now:
            if self._heap and self._heap[0][0] <= (
                self._times[self._next] if self._next < len(self._times) else INF
            ):
                at, _, client = heapq.heappop(self._heap)
                if client < 0:
                    self._change(at, self._clients.schedule[-1 - client][1])
                elif client >= self._active:
                    self._busy.discard(client)
                else:
                    found.append(Request(at, *self._draw(), client))
            else:
                found.append(Request(self._times[self._next], *self._draw()))
                self._next += 1
        return found

    def finished(self, request: Request, now: float) -> None:
        """A client is answered: it comes back, or leaves."""
        if request.client < 0:
            return
        if request.client >= self._active:
            self._busy.discard(request.client)
            return
        think = self._clients.think_seconds
        pause = self._rng.exponential(think) if think else 0.0
        self._push(now + pause, request.client)

    def _change(self, at: float, clients: int) -> None:
        self._active = clients
        for client in range(clients):
            if client not in self._busy:
                self._busy.add(client)
                self._push(at + self._rng.random() * self._clients.stagger_seconds, client)

    def _push(self, at: float, client: int) -> None:
        self._count += 1
        heapq.heappush(self._heap, (at, self._count, client))

    def _draw(self) -> tuple[int, int]:
        drawn = next(self._lengths, None)
        if drawn is None:
            prompts, outputs = self._mix.draw(self._rng, _DRAWS)
            self._lengths = iter(zip(prompts.tolist(), outputs.tolist(), strict=True))
            drawn = next(self._lengths)
        return drawn


@dataclass(eq=False)
class Engine:
    """One process life, from `start` on. `run` advances it and yields the snapshots asked for."""

    server: Server
    mix: Mix
    load: Sequence[Arrivals | Clients] | Feed
    seed: int = 0
    start: float = 0.0
    slow: Sequence[Slow] = ()
    bounds: Mapping[str, Sequence[float]] = field(default_factory=lambda: BOUNDS)
    came: int = 0
    finished: int = 0
    busy_seconds: float = 0.0
    running_seconds: float = 0.0  # the integral of running requests over time
    steps: int = 0
    waiting: deque[Request] = field(default_factory=deque)
    running: dict[int, Request] = field(default_factory=dict)  # in the order of admission

    def __post_init__(self) -> None:
        self.now = self.start
        self._rng = np.random.default_rng((self.seed, 17))
        self._source = (
            self.load
            if isinstance(self.load, Feed)
            else _Source(self.mix, self.load, np.random.default_rng((self.seed, 18)))
        )
        self._free = self.server.blocks
        self._kv = 0  # tokens in the cache
        self._decoding = 0
        self._step = 0
        self._phases = [0] * BLOCK_TOKENS
        self._ends: list[tuple[int, int, int, Request]] = []
        self._prefilling: list[Request] = []
        self._order = 0
        self.generation_tokens = self.prompt_tokens = self.stopped = self.cut = 0
        self.preemptions = 0
        self._gauges = (0, 0, 0.0)
        self.histograms = {name: Histogram(self.bounds[name]) for name in HISTOGRAMS}
        self._ttft = self.histograms["time_to_first_token_seconds"]
        self._itl = self.histograms["inter_token_latency_seconds"]
        self._iteration = self.histograms["iteration_tokens_total"]
        self._noise: Iterator[tuple[float, float]] = iter(())
        jitter = self.server.jitter
        self._is_noisy = bool(jitter.sigma or jitter.pause_share)
        self._edges = sorted({edge for one in self.slow for edge in (one.start, one.end)})

    def run(self, probes: Sequence[float]) -> Iterator[Snapshot]:
        """The state at each of the times, ascending; the engine stands at the last one after it."""
        for probe in probes:
            self.advance(probe)
            yield self.snapshot()

    def snapshot(self) -> Snapshot:
        running, waiting, kv_ratio = self._gauges
        return Snapshot(
            running,
            waiting,
            kv_ratio,
            self.generation_tokens,
            self.prompt_tokens,
            self.stopped,
            self.cut,
            self.preemptions,
            tuple(self.histograms[name].state() for name in HISTOGRAMS),
        )

    @property
    def load_requests(self) -> int:
        """The requests that it has: running, waiting, or sent and not seen yet."""
        sent = len(self._source) if isinstance(self._source, Feed) else 0
        return len(self.running) + len(self.waiting) + sent

    def advance(self, until: float) -> None:
        """Make every step that ends by `until`."""
        if until < self._step_end and self._source.peek() > self.now:
            return  # the next step is known to end later, and nobody came before it
        self._step_end = -INF
        while True:
            self._take(self.now)
            if not self.running and not self.waiting:
                following = self._source.peek()
                if following > until:
                    return
                self.now = max(self.now, following)
                continue
            is_done = (
                self._mixed_step(until)
                if self._prefilling or self._can_admit()
                else self._decode_steps(until)
            )
            if is_done:
                return

    def _take(self, now: float) -> None:
        if self._source.peek() <= now:
            came = self._source.pop_until(now)
            self.came += len(came)
            self.waiting.extend(came)

    def _can_admit(self) -> bool:
        if not self.waiting or len(self.running) >= self.server.max_num_seqs:
            return False
        return self._blocks_of(self.waiting[0]) <= self._free - self._due()

    def _blocks_of(self, request: Request) -> int:
        tokens = request.prompt + request.generated
        return -(-tokens // BLOCK_TOKENS)

    def _due(self) -> int:
        """The blocks that the decoding requests need in the next step."""
        return self._phases[self._step % BLOCK_TOKENS]

    # --- single steps ---

    def _mixed_step(self, until: float) -> bool:
        """A step with prompts in it. True if it would end after `until`: then nothing is done."""
        plan = self._planned()
        if plan is None:  # out of blocks: preempt the last admitted request, then plan again
            self._preempt()
            return False
        chunks, admitted, prompt_tokens = plan
        seconds = self._seconds(prompt_tokens)
        if self.now + seconds > until:
            self._step_end = self.now + seconds
            return True
        self._keep_noise = None
        for request in admitted:
            self._admit(request)
        self._finish_step(seconds, prompt_tokens)
        for request, chunk in chunks:
            request.computed += chunk
        self._kv += prompt_tokens
        self._complete_decodes()
        outputs = self._complete_prefills()
        if self._before or outputs:
            self._iteration.add(self._before + outputs)
        self._set_gauges()
        return False

    def _planned(self) -> tuple[list[tuple[Request, int]], list[Request], int] | None:
        due = self._due()
        if due > self._free:
            return None
        free = self._free - due
        budget = self.server.step_tokens - self._decoding
        chunks: list[tuple[Request, int]] = []
        total = 0
        for request in self._prefilling:
            if budget <= 0:
                break
            chunk = min(request.target - request.computed, budget)
            chunks.append((request, chunk))
            budget -= chunk
            total += chunk
        admitted: list[Request] = []
        slots = self.server.max_num_seqs - len(self.running)
        for request in self.waiting:
            blocks = self._blocks_of(request)
            if budget <= 0 or len(admitted) >= slots or blocks > free:
                break
            chunk = min(request.prompt + request.generated, budget)
            admitted.append(request)
            chunks.append((request, chunk))
            free -= blocks
            budget -= chunk
            total += chunk
        return chunks, admitted, total

    def _admit(self, request: Request) -> None:
        self.waiting.popleft()
        if request.scheduled < 0:
            request.scheduled = self.now
        request.target = request.prompt + request.generated
        request.computed = 0
        self._free -= self._blocks_of(request)
        self._order += 1
        self.running[id(request)] = request
        self._prefilling.append(request)

    def _finish_step(self, seconds: float, prompt_tokens: int) -> None:
        """Time passes, and every decoding request has one more token."""
        self._before = self._decoding
        self._began = self.now
        self._free -= self._due()
        self.now += seconds
        self.busy_seconds += seconds
        self.running_seconds += seconds * len(self.running)
        self._step += 1
        self.steps += 1
        if self._decoding:
            self.generation_tokens += self._decoding
            self._kv += self._decoding
            self._itl.add(seconds, self._decoding)

    def _complete_decodes(self) -> None:
        while self._ends and self._ends[0][0] <= self._step:
            _, _, began, request = heapq.heappop(self._ends)
            if request.decode_from != began or id(request) not in self.running:
                continue
            request.generated += self._step - request.decode_from
            self._leave_decode(request)
            self._finish(request)

    def _complete_prefills(self) -> int:
        """Prompts whose last chunk this was: a first token each. The tokens they tell of."""
        if not self._prefilling:
            return 0
        still, result = [], 0
        for request in self._prefilling:
            if request.computed < request.target:
                still.append(request)
                continue
            result += request.target
            self._first_output(request)
        self._prefilling = still
        return result

    def _first_output(self, request: Request) -> None:
        self.generation_tokens += 1
        if request.first < 0:
            request.first = self.now
            self.prompt_tokens += request.prompt
            self._ttft.add(self.now - request.arrival + self.server.frontend_seconds)
        else:
            self._itl.add(self.now - request.last)
        request.generated += 1
        if request.generated >= request.output:
            self._release(request.target)
            self._finish(request)
            return
        request.decode_from = self._step
        self._phases[(self._step - request.target) % BLOCK_TOKENS] += 1
        self._decoding += 1
        end = self._step + request.output - request.generated
        self._order += 1
        heapq.heappush(self._ends, (end, self._order, self._step, request))

    def _leave_decode(self, request: Request) -> None:
        """A decoding request gives back its blocks."""
        self._phases[(request.decode_from - request.target) % BLOCK_TOKENS] -= 1
        self._decoding -= 1
        self._release(request.target + self._step - request.decode_from)
        request.decode_from = -1

    def _release(self, tokens: int) -> None:
        self._kv -= tokens
        self._free += -(-tokens // BLOCK_TOKENS)

    def _finish(self, request: Request) -> None:
        del self.running[id(request)]
        self.finished += 1
        request.last = self.now
        if request.output >= self.mix.most_output:
            self.cut += 1
        else:
            self.stopped += 1
        decode = request.last - request.first
        result = self.histograms
        result["e2e_request_latency_seconds"].add(
            self.now - request.arrival + self.server.frontend_seconds
        )
        result["request_queue_time_seconds"].add(request.scheduled - request.arrival)
        result["request_prefill_time_seconds"].add(request.first - request.scheduled)
        result["request_decode_time_seconds"].add(decode)
        result["request_inference_time_seconds"].add(request.last - request.scheduled)
        many = request.generated > 1
        result["request_time_per_output_token_seconds"].add(
            decode / (request.generated - 1) if many else 0.0
        )
        result["request_prompt_tokens"].add(request.prompt)
        result["request_generation_tokens"].add(request.generated)
        self._source.finished(request, self.now)

    def _preempt(self) -> None:
        """The request admitted last goes back to the head of the queue, all its work lost."""
        _, request = self.running.popitem()
        self.preemptions += 1
        request.preemptions += 1
        if request.decode_from >= 0:
            request.generated += self._step - request.decode_from
            request.last = self.now
            self._leave_decode(request)
        else:
            self._prefilling.remove(request)
            self._kv -= request.computed
            self._free += self._blocks_of(request)
        self.waiting.appendleft(request)

    # --- many steps at once ---

    def _decode_steps(self, until: float) -> bool:
        """Steps of a constant batch. True if not one would end by `until`: then none is made."""
        batch = self._decoding
        due = self._due()
        if due > self._free:
            self._preempt()
            return False
        if not batch:
            raise RuntimeError("the request at the head of the queue can never fit the cache")
        first = self._seconds(0)
        if self.now + first > until:
            self._step_end = self.now + first
            return True
        count = min(self._ends[0][0] - self._step, _MAX_STEPS)
        count = 1 if self._free < batch else min(count, BLOCK_TOKENS * (self._free // batch))
        arrival = INF if self._is_blocked() else self._source.peek()
        change = next((edge for edge in self._edges if edge > self.now), INF)
        horizon = min(until, arrival, change)
        count = max(1, min(count, int((horizon - self.now) / first) + 2))
        if count <= 1:
            self._keep_noise = None
            self._finish_step(first, 0)
            self._iteration.add(batch)
        else:
            self._many(count, first, until, min(arrival, change))
        self._take(self._began)
        self._complete_decodes()
        self._set_gauges()
        return False

    def _is_blocked(self) -> bool:
        """Whether who comes now cannot be admitted before somebody finishes."""
        return bool(self.waiting) or len(self.running) >= self.server.max_num_seqs

    def _many(self, count: int, first: float, until: float, news: float) -> None:
        batch = self._decoding
        kv = self._kv + batch * np.arange(count, dtype=float)
        seconds = np.asarray(self.server.law.seconds(batch, 0, kv), float) * self._factor()
        if self._is_noisy:
            factors, pauses = self._draw_noise(count)
            seconds = seconds * factors + pauses
            seconds[0] = first
        self._keep_noise = None
        ends = self.now + np.cumsum(seconds)
        made = int(ends.searchsorted(until, side="right"))
        made = min(made, 1 + int(ends[:-1].searchsorted(news, side="left")))
        made = max(1, made)
        spent = seconds[:made]
        self._began = float(ends[made - 2]) if made > 1 else self.now
        total = float(ends[made - 1]) - self.now
        for step in range(self._step, self._step + made % BLOCK_TOKENS):
            self._free -= self._phases[step % BLOCK_TOKENS]
        self._free -= batch * (made // BLOCK_TOKENS)
        self.now = float(ends[made - 1])
        self.busy_seconds += total
        self.running_seconds += total * len(self.running)
        self._step += made
        self.steps += made
        self.generation_tokens += batch * made
        self._kv += batch * made
        self._itl.add_each(spent, batch)
        self._iteration.add(batch, made)
        self._before = batch

    # --- time ---

    _keep_noise: tuple[float, float] | None = None
    _before: int = 0
    _began: float = 0.0
    _step_end: float = -INF  # of the next step, if it was found to end too late

    def _seconds(self, prompt_tokens: int) -> float:
        """How long the next step takes. Its noise stays the same until the step is made."""
        kv = float(self._kv)
        seconds = float(self.server.law.seconds(self._decoding, prompt_tokens, kv)) * self._factor()
        if not self._is_noisy:
            return seconds
        if self._keep_noise is None:
            drawn = next(self._noise, None)
            if drawn is None:
                factors, pauses = self._draw_noise(_DRAWS)
                self._noise = iter(zip(factors.tolist(), pauses.tolist(), strict=True))
                drawn = next(self._noise)
            self._keep_noise = drawn
        factor, pause = self._keep_noise
        return seconds * factor + pause

    def _draw_noise(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        jitter = self.server.jitter
        return jitter.factors(self._rng, count), jitter.pauses(self._rng, count)

    def _factor(self) -> float:
        for one in self.slow:
            if one.start <= self.now < one.end:
                return one.factor
        return 1.0

    def _set_gauges(self) -> None:
        used = 1 - self._free / self.server.blocks
        self._gauges = (len(self.running), len(self.waiting), used)
