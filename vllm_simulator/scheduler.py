"""vLLM V1's scheduler: each request's tokens in the next step, and preemptions.

It follows `vllm/v1/core/sched/scheduler.py`:

1. Running requests come first, in order of admission. Each gets the tokens it still has to compute
   (one when decoding), within `max_num_batched_tokens`.
2. If blocks for that are missing, the request admitted last is preempted: its blocks are freed, its
   progress is lost, and it goes back to the *front* of the queue (recompute; there is no swapping).
3. In a step without a preemption, waiting requests are admitted, first come first served, while
   there is a slot (`max_num_seqs`), budget, and room for the whole prompt. Long prompts are
   computed in chunks. The part of a prompt that is still in the prefix cache is not computed, but
   the last token always is.

Two consequences make the simulation fast. A chunked prompt takes all the remaining budget, so there
is at most one, and it was admitted last; all other requests decode one token in every step. As soon
as a request starts to decode, the steps at which it needs its next block and finishes are known, so
no step has to touch it in between.

KV blocks are paged: they have reference counts, an LRU queue of free blocks, and cached content.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from msgspec import Struct, field

from vllm_simulator.config import EngineConfig, EngineRequest

Content = tuple[int, int]  # (stream of tokens, index of the block in it)


class BlockPool:
    """The KV blocks of one engine, managed as in vLLM's block pool.

    A free block keeps its content until it is taken again, oldest first. It is free and cached at
    the same time, so KV usage falls to 0 in an idle engine with a full prefix cache.
    """

    def __init__(self, usable: int) -> None:
        self.usable = usable
        self.free = usable
        self._untouched = usable
        self._queue: OrderedDict[int, None] = OrderedDict()
        self._holders: list[int] = []
        self._content_of: dict[int, Content] = {}
        self._block_of: dict[Content, int] = {}

    @property
    def usage_ratio(self) -> float:
        """The share of blocks that running requests hold, 0..1."""
        return 1.0 - self.free / self.usable

    def take(self, count: int) -> list[int]:
        """Take and empty `count` free blocks; the caller has checked that there are enough."""
        taken = []
        for _ in range(count):
            if self._untouched:
                self._untouched -= 1
                block = len(self._holders)
                self._holders.append(1)
            else:
                block, _ = self._queue.popitem(last=False)
                self._holders[block] = 1
                content = self._content_of.pop(block, None)
                if content is not None:
                    del self._block_of[content]
            taken.append(block)
        self.free -= count
        return taken

    def cached(self, contents: Iterable[Content]) -> list[int]:
        """The blocks of the longest leading part of `contents` that is still cached."""
        found = []
        for content in contents:
            block = self._block_of.get(content)
            if block is None:
                break
            found.append(block)
        return found

    def free_among(self, blocks: Sequence[int]) -> int:
        """How many of these cached blocks are free, so that holding them uses up free blocks."""
        return sum(self._holders[block] == 0 for block in blocks)

    def hold(self, blocks: Sequence[int]) -> None:
        """Add one holder to each of these cached blocks."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._queue[block]
                self.free -= 1
            self._holders[block] += 1

    def release(self, blocks: Sequence[int]) -> None:
        """Remove one holder from each; the last blocks of a sequence are reused first."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                self._queue[block] = None
                self.free += 1

    def publish(self, block: int, content: Content) -> None:
        """Add a full block to the prefix cache; only the first block of a content is kept."""
        if content not in self._block_of and block not in self._content_of:
            self._block_of[content] = block
            self._content_of[block] = content


_Due = tuple[int, int, int, EngineRequest]  # step, admission, `life` at that time, request


class Batch(Struct):
    """The work of one step: decoding requests (one token each) and prefills (request, tokens)."""

    decodes: int
    prefills: list[tuple[EngineRequest, int]] = field(default_factory=list)
    prefill_tokens: int = 0
    context_tokens: int = 0
    preemptions: int = 0
    admitted: list[EngineRequest] = field(default_factory=list)  # scheduled for the first time


class Scheduler:
    """The queue and the running requests of one engine.

    `step` counts the steps that have ended, the last of them at `clock`.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.usable_blocks)
        self.waiting: deque[EngineRequest] = deque()
        self.running: dict[int, EngineRequest] = {}  # by admission, in its order
        self.decoding = 0
        self.context_tokens = 0  # of the decoding ones
        self.step = 0
        self.clock = 0.0
        self._partial: EngineRequest | None = None
        self._admissions = 0
        self._block_due: list[_Due] = []
        self._finish_due: list[_Due] = []

    @property
    def only_decodes(self) -> bool:
        """Whether nothing waits, and every running request gets one token in the next step."""
        return self._partial is None and not self.waiting

    def schedule(self) -> Batch:
        """Schedule and return the next step's work."""
        preemptions = self._grow_decoding()
        budget = self.config.max_num_batched_tokens - self.decoding
        batch = Batch(self.decoding, context_tokens=self.context_tokens, preemptions=preemptions)
        if self._partial is not None:
            budget = self._continue_prefill(self._partial, batch, budget)
        if self.waiting and not batch.preemptions:
            self._admit_waiting(batch, budget)
        return batch

    def end_step(self, steps: int, clock: float) -> None:
        """Give every decoding request `steps` more tokens, the last at `clock`."""
        self.step += steps
        self.clock = clock
        self.context_tokens += steps * self.decoding

    def start_decoding(self, request: EngineRequest) -> None:
        """Start decoding after a request's first token: it gets one token per step from now on."""
        request.is_decoding = True
        request.counted_step = self.step
        self.decoding += 1
        self.context_tokens += request.total
        left = request.spec.output_tokens - request.generated
        heapq.heappush(
            self._finish_due, (self.step + left, request.admission, request.life, request)
        )
        room = len(request.blocks) * self.config.block_size - request.total
        heapq.heappush(
            self._block_due, (self.step + room + 2, request.admission, request.life, request)
        )

    def finished(self) -> list[EngineRequest]:
        """Remove and return the decoding requests that got their last token in the last step."""
        ended = []
        while self._next_finish() <= self.step:
            request = heapq.heappop(self._finish_due)[-1]
            self.remove(request)
            ended.append(request)
        return ended

    def remove(self, request: EngineRequest) -> None:
        """Remove a running or waiting request from the engine and free its blocks."""
        request.is_done = True
        if request.admission in self.running:
            del self.running[request.admission]
            self._release(request)
        else:
            self.waiting.remove(request)

    def steps_without_event(self, wanted: int) -> int:
        """How many of the `wanted` decode steps pass without a finish; 0 if blocks may run out."""
        steps = min(wanted, self._next_finish() - self.step - 1)
        blocks = 1 + (self.config.sliding_blocks > 0)
        most = (steps // self.config.block_size + 1) * blocks * self.decoding
        return steps if most <= self.pool.free else 0

    def grow_through(self, step: int) -> None:
        """Take the blocks for decoding up to and including `step`; there are enough."""
        while self._block_due and self._block_due[0][0] <= step:
            due, admission, life, request = heapq.heappop(self._block_due)
            if life == request.life:
                self._add_block(request)
                again = due + self.config.block_size
                heapq.heappush(self._block_due, (again, admission, life, request))

    def _next_finish(self) -> int:
        while self._finish_due:
            step, _, life, request = self._finish_due[0]
            if life == request.life:
                return step
            heapq.heappop(self._finish_due)
        return self.step + 1_000_000

    def _grow_decoding(self) -> int:
        """Take blocks for next tokens, oldest request first; returns the number of preemptions."""
        step, preemptions = self.step + 1, 0
        while self._block_due and self._block_due[0][0] <= step:
            due, admission, life, request = heapq.heappop(self._block_due)
            if life != request.life:
                continue
            while self.pool.free < 1 + self._side_blocks(request, len(request.blocks) + 1):
                preemptions += 1
                if self._preempt_last() is request:
                    break
            if life == request.life:
                self._add_block(request)
                again = due + self.config.block_size
                heapq.heappush(self._block_due, (again, admission, life, request))
        return preemptions

    def _add_block(self, request: EngineRequest) -> None:
        self._publish(request, len(request.blocks))
        side = self._side_blocks(request, len(request.blocks) + 1)
        request.blocks += self.pool.take(1)
        request.side_blocks += self.pool.take(side)

    def _continue_prefill(self, request: EngineRequest, batch: Batch, budget: int) -> int:
        tokens = min(request.total - request.computed, budget)
        if not self._grow(request, tokens):  # it was admitted last, so it is the one to preempt
            self._preempt_last()
            batch.preemptions += 1
            return budget
        self._partial = None
        self._add(batch, request, tokens)
        return budget - tokens

    def _grow(self, request: EngineRequest, tokens: int) -> bool:
        size = self.config.block_size
        blocks = -(-(request.computed + tokens) // size)
        needed, side = blocks - len(request.blocks), self._side_blocks(request, blocks)
        if needed + side > self.pool.free:
            return False
        request.blocks += self.pool.take(needed)
        request.side_blocks += self.pool.take(side)
        self._publish(request, (request.computed + tokens) // size)
        return True

    def _admit_waiting(self, batch: Batch, budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            request = self.waiting[0]
            hit = self._cached_blocks(request)
            needed = self.config.blocks_for(request.total) - len(hit)
            if needed + self.pool.free_among(hit) > self.pool.free:
                return
            self.waiting.popleft()
            self.pool.hold(hit)
            request.blocks = hit
            request.published = len(hit)
            request.computed = len(hit) * self.config.block_size
            tokens = min(request.total - request.computed, budget)
            self._grow(request, tokens)
            self._admissions += 1
            request.admission = self._admissions
            if request.scheduled_at is None:
                request.cached_tokens = request.computed
                batch.admitted.append(request)
            self.running[request.admission] = request
            self._add(batch, request, tokens)
            budget -= tokens

    def _add(self, batch: Batch, request: EngineRequest, tokens: int) -> None:
        batch.prefills.append((request, tokens))
        batch.prefill_tokens += tokens
        batch.context_tokens += request.computed + tokens
        if request.computed + tokens < request.total:
            self._partial = request

    def _cached_blocks(self, request: EngineRequest) -> list[int]:
        if not self.config.enable_prefix_caching:
            return []
        last = (request.total - 1) // self.config.block_size
        return self.pool.cached(self._content(request, index) for index in range(last))

    def _content(self, request: EngineRequest, index: int) -> Content:
        spec = request.spec
        is_shared = (index + 1) * self.config.block_size <= spec.prefix_tokens
        if spec.prefix is not None and is_shared:
            return (-1 - spec.prefix, index)
        return (request.uid, index)

    def _publish(self, request: EngineRequest, full_blocks: int) -> None:
        if self.config.enable_prefix_caching:
            for index in range(request.published, full_blocks):
                self.pool.publish(request.blocks[index], self._content(request, index))
        request.published = max(request.published, full_blocks)

    def _side_blocks(self, request: EngineRequest, blocks: int) -> int:
        return min(blocks, self.config.sliding_blocks) - len(request.side_blocks)

    def _preempt_last(self) -> EngineRequest:
        _, request = self.running.popitem()
        self._release(request)
        request.computed = request.published = 0
        request.preemptions += 1
        self.waiting.appendleft(request)
        return request

    def _release(self, request: EngineRequest) -> None:
        """Count a running request's tokens up to now and free its blocks."""
        if request.is_decoding:
            gained = self.step - request.counted_step
            request.total += gained
            request.generated += gained
            request.computed = request.total - 1
            request.last_at = self.clock
            self.decoding -= 1
            self.context_tokens -= request.total
            request.is_decoding = False
        if self._partial is request:
            self._partial = None
        request.life += 1
        self._publish(request, request.computed // self.config.block_size)
        self.pool.release(request.side_blocks)
        self.pool.release(request.blocks)
        request.blocks, request.side_blocks = [], []
