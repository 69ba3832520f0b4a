"""vLLM V1's scheduler: who gets how many tokens in the next step, and who is thrown out.

In words, as `vllm/v1/core/sched/scheduler.py` does it:

1. Running requests first, in order of admission: each gets the tokens it still has to compute (one
   when decoding), within `max_num_batched_tokens`.
2. Where the blocks for that are missing, the request admitted last is preempted: its blocks are
   freed, its progress is forgotten, and it goes back to the *front* of the queue (recompute; there
   is no swapping).
3. Only in a step without a preemption, waiting requests are admitted, first come first served,
   while there is a slot (`max_num_seqs`), budget, and room for the whole prompt. Long prompts are
   computed in chunks. What the prefix cache still holds of a prompt is not computed, but its last
   token is.

Two things follow that make this fast. A prompt in chunks takes all the budget there is, so there
is at most one, admitted last; everybody else decodes, one token in every step. So a decoding
sequence is not touched step by step: when it needs its next block, and when it will have finished,
is known as soon as it starts to decode.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field

from vllm_capacity.engine.blocks import BlockPool, Content
from vllm_capacity.engine.config import EngineConfig, Sequence

_Due = tuple[int, int, int, Sequence]  # step, admission, life of the entry, whose


@dataclass
class Batch:
    """The work of one step: decoding sequences (one token each) and prefills (sequence, tokens)."""

    decodes: int
    prefills: list[tuple[Sequence, int]] = field(default_factory=list)
    prefill_tokens: int = 0
    context_tokens: int = 0
    preemptions: int = 0
    admitted: list[Sequence] = field(default_factory=list)  # scheduled for the first time


class Scheduler:
    """The queue and the running requests of one engine.

    `step` counts the steps that have ended, the last of them at `clock`.
    """

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.pool = BlockPool(config.usable_blocks)
        self.waiting: deque[Sequence] = deque()
        self.running: dict[int, Sequence] = {}  # by admission, in its order
        self.decoding = 0
        self.context_tokens = 0  # of the decoding ones
        self.step = 0
        self.clock = 0.0
        self._partial: Sequence | None = None
        self._admissions = 0
        self._block_due: list[_Due] = []
        self._finish_due: list[_Due] = []

    @property
    def only_decodes(self) -> bool:
        """Whether the next step is one token for everybody who runs, and nobody waits."""
        return self._partial is None and not self.waiting

    def schedule(self) -> Batch:
        """The next step's work."""
        preemptions = self._grow_decoding()
        budget = self.config.max_num_batched_tokens - self.decoding
        batch = Batch(self.decoding, context_tokens=self.context_tokens, preemptions=preemptions)
        if self._partial is not None:
            budget = self._continue_prefill(self._partial, batch, budget)
        if self.waiting and not batch.preemptions:
            self._admit_waiting(batch, budget)
        return batch

    def end_step(self, steps: int, clock: float) -> None:
        """Every decoding sequence has got `steps` more tokens, the last at `clock`."""
        self.step += steps
        self.clock = clock
        self.context_tokens += steps * self.decoding

    def start_decoding(self, seq: Sequence) -> None:
        """Its prompt is computed and a token given: from the next step on it gets one a step."""
        seq.is_decoding = True
        seq.counted_step = self.step
        self.decoding += 1
        self.context_tokens += seq.total
        left = seq.request.output_tokens - seq.generated
        heapq.heappush(self._finish_due, (self.step + left, seq.admission, seq.life, seq))
        room = len(seq.blocks) * self.config.block_size - seq.total
        heapq.heappush(self._block_due, (self.step + room + 2, seq.admission, seq.life, seq))

    def finished(self) -> list[Sequence]:
        """The decoding sequences whose last token came with the step just ended, taken out."""
        ended = []
        while self._next_finish() <= self.step:
            seq = heapq.heappop(self._finish_due)[-1]
            self.remove(seq)
            ended.append(seq)
        return ended

    def remove(self, seq: Sequence) -> None:
        """Take a sequence out of the engine, wherever it is, and free what it holds."""
        seq.is_done = True
        if seq.admission in self.running:
            del self.running[seq.admission]
            self._release(seq)
        else:
            self.waiting.remove(seq)

    def steps_without_event(self, wanted: int) -> int:
        """How many of the `wanted` decode steps pass without a finish or a lack of blocks."""
        steps = min(wanted, self._next_finish() - self.step - 1)
        blocks = 1 + (self.config.sliding_blocks > 0)
        most = (steps // self.config.block_size + 1) * blocks * self.decoding
        return steps if most <= self.pool.free else 0

    def grow_through(self, step: int) -> None:
        """The blocks that decoding up to and including `step` takes; there are enough."""
        while self._block_due and self._block_due[0][0] <= step:
            due, admission, life, seq = heapq.heappop(self._block_due)
            if life == seq.life:
                self._add_block(seq)
                again = due + self.config.block_size
                heapq.heappush(self._block_due, (again, admission, life, seq))

    def _next_finish(self) -> int:
        while self._finish_due:
            step, _, life, seq = self._finish_due[0]
            if life == seq.life:
                return step
            heapq.heappop(self._finish_due)
        return self.step + 1_000_000

    def _grow_decoding(self) -> int:
        """Blocks for those whose next token needs one, oldest first; how many were preempted."""
        step, preemptions = self.step + 1, 0
        while self._block_due and self._block_due[0][0] <= step:
            due, admission, life, seq = heapq.heappop(self._block_due)
            if life != seq.life:
                continue
            while self.pool.free < 1 + self._side_blocks(seq, len(seq.blocks) + 1):
                preemptions += 1
                if self._preempt_last() is seq:
                    break
            if life == seq.life:
                self._add_block(seq)
                again = due + self.config.block_size
                heapq.heappush(self._block_due, (again, admission, life, seq))
        return preemptions

    def _add_block(self, seq: Sequence) -> None:
        self._publish(seq, len(seq.blocks))
        side = self._side_blocks(seq, len(seq.blocks) + 1)
        seq.blocks += self.pool.take(1)
        seq.side_blocks += self.pool.take(side)

    def _continue_prefill(self, seq: Sequence, batch: Batch, budget: int) -> int:
        tokens = min(seq.total - seq.computed, budget)
        if not self._grow(seq, tokens):  # it is the last admitted: nobody else to preempt
            self._preempt_last()
            batch.preemptions += 1
            return budget
        self._partial = None
        self._add(batch, seq, tokens)
        return budget - tokens

    def _grow(self, seq: Sequence, tokens: int) -> bool:
        size = self.config.block_size
        blocks = -(-(seq.computed + tokens) // size)
        needed, side = blocks - len(seq.blocks), self._side_blocks(seq, blocks)
        if needed + side > self.pool.free:
            return False
        seq.blocks += self.pool.take(needed)
        seq.side_blocks += self.pool.take(side)
        self._publish(seq, (seq.computed + tokens) // size)
        return True

    def _admit_waiting(self, batch: Batch, budget: int) -> None:
        while self.waiting and budget > 0 and len(self.running) < self.config.max_num_seqs:
            seq = self.waiting[0]
            hit = self._cached_blocks(seq)
            needed = self.config.blocks_for(seq.total) - len(hit)
            if needed + self.pool.free_among(hit) > self.pool.free:
                return
            self.waiting.popleft()
            self.pool.hold(hit)
            seq.blocks = hit
            seq.published = len(hit)
            seq.computed = len(hit) * self.config.block_size
            tokens = min(seq.total - seq.computed, budget)
            self._grow(seq, tokens)
            self._admissions += 1
            seq.admission = self._admissions
            if seq.scheduled_at is None:
                seq.cached_tokens = seq.computed
                batch.admitted.append(seq)
            self.running[seq.admission] = seq
            self._add(batch, seq, tokens)
            budget -= tokens

    def _add(self, batch: Batch, seq: Sequence, tokens: int) -> None:
        batch.prefills.append((seq, tokens))
        batch.prefill_tokens += tokens
        batch.context_tokens += seq.computed + tokens
        if seq.computed + tokens < seq.total:
            self._partial = seq

    def _cached_blocks(self, seq: Sequence) -> list[int]:
        if not self.config.enable_prefix_caching:
            return []
        last = (seq.total - 1) // self.config.block_size
        return self.pool.cached(self._content(seq, index) for index in range(last))

    def _content(self, seq: Sequence, index: int) -> Content:
        request = seq.request
        is_shared = (index + 1) * self.config.block_size <= request.prefix_tokens
        if request.prefix is not None and is_shared:
            return (-1 - request.prefix, index)
        return (seq.uid, index)

    def _publish(self, seq: Sequence, full_blocks: int) -> None:
        if self.config.enable_prefix_caching:
            for index in range(seq.published, full_blocks):
                self.pool.publish(seq.blocks[index], self._content(seq, index))
        seq.published = max(seq.published, full_blocks)

    def _side_blocks(self, seq: Sequence, blocks: int) -> int:
        return min(blocks, self.config.sliding_blocks) - len(seq.side_blocks)

    def _preempt_last(self) -> Sequence:
        _, seq = self.running.popitem()
        self._release(seq)
        seq.computed = seq.published = 0
        seq.preemptions += 1
        self.waiting.appendleft(seq)
        return seq

    def _release(self, seq: Sequence) -> None:
        """Free a running sequence's blocks, its tokens counted up to now."""
        if seq.is_decoding:
            gained = self.step - seq.counted_step
            seq.total += gained
            seq.generated += gained
            seq.computed = seq.total - 1
            seq.last_at = self.clock
            self.decoding -= 1
            self.context_tokens -= seq.total
            seq.is_decoding = False
        if self._partial is seq:
            self._partial = None
        seq.life += 1
        self._publish(seq, seq.computed // self.config.block_size)
        self.pool.release(seq.side_blocks)
        self.pool.release(seq.blocks)
        seq.blocks, seq.side_blocks = [], []
