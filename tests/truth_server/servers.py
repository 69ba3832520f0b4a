"""Servers and mixes of requests, in the sizes that real ones have."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from tests.truth_server.laws import Affine, Experts, Jitter, Law, Retrograde, Roofline

Sampler = Callable[[np.random.Generator, int], np.ndarray]
BLOCK_TOKENS = 16


@dataclass(frozen=True)
class Server:
    """One engine: its law, its scheduler's limits, its cache."""

    name: str
    law: Law
    max_num_seqs: int
    step_tokens: int
    blocks: int
    jitter: Jitter = field(default_factory=Jitter)
    frontend_seconds: float = 0.004
    max_model_len: int = 8192
    usd_per_hour: float = 2.0

    @property
    def kv_tokens(self) -> int:
        return self.blocks * BLOCK_TOKENS


@dataclass(frozen=True)
class Mix:
    """Lengths of prompts and answers, tokens."""

    name: str
    prompt: Sampler
    output: Sampler
    most_prompt: int = 6000
    most_output: int = 2000

    def draw(self, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
        prompts = np.clip(np.rint(self.prompt(rng, count)), 1, self.most_prompt)
        outputs = np.clip(np.rint(self.output(rng, count)), 1, self.most_output)
        return prompts.astype(np.int64), outputs.astype(np.int64)

    def means(self) -> tuple[float, float]:
        """Mean prompt and answer, by a sample that is always the same."""
        prompts, outputs = self.draw(np.random.default_rng(1), 200_000)
        return float(prompts.mean()), float(outputs.mean())


def fixed(tokens: float) -> Sampler:
    return lambda rng, count: np.full(count, tokens)


def lognormal(mean: float, cv: float) -> Sampler:
    sigma = math.sqrt(math.log(1 + cv * cv))
    return lambda rng, count: rng.lognormal(math.log(mean) - sigma * sigma / 2, sigma, count)


def bimodal(short: float, long: float, long_share: float) -> Sampler:
    def draw(rng: np.random.Generator, count: int) -> np.ndarray:
        means = np.where(rng.random(count) < long_share, long, short)
        return means * rng.lognormal(-0.045, 0.3, count)

    return draw


def zipf(exponent: float, least: float) -> Sampler:
    return lambda rng, count: least * rng.zipf(exponent, count).astype(float)


def uniform(low: float, high: float) -> Sampler:
    return lambda rng, count: rng.uniform(low, high, count)


SERVERS = {
    one.name: one
    for one in (
        # ~300 tokens/s at ~27 running, 25 tokens/s at one: like the recorded sweep.
        Server("cpu-small", Affine(0.038, 0.0019, 0.0004, 2e-6), 32, 2048, 700, Jitter(0.05),
               max_model_len=2048),
        Server("a100-8b", Roofline(0.0108, 8.7e-8, 1.0e-4, 0.0035, 2.5e-5), 128, 2048, 15_000),
        Server("h100-8b", Affine(0.0068, 4.2e-5, 3.2e-5, 4.2e-8), 256, 8192, 28_000),
        Server("h100-70b-tp4", Roofline(0.0125, 5e-8, 8.0e-5, 0.0065, 3e-5), 256, 8192, 40_000,
               Jitter(0.03)),
        Server("retrograde", Retrograde(0.012, 1.0e-4, 3.4e-6, 9e-5), 192, 2048, 30_000),
        Server("moe", Experts(0.006, 0.030, 64, 4, 6e-5, 4.5e-5, 3e-8), 128, 4096, 24_000),
        Server("host-bound", Affine(0.016, 2.6e-4, 8e-5), 128, 2048, 20_000,
               Jitter(0.25, 1 / 1500, (0.08, 0.4))),
        # A cache too small for its slots: KV-bound, with preemptions.
        Server("a100-tight-kv", Roofline(0.0108, 8.7e-8, 1.0e-4, 0.0035, 2.5e-5), 128, 2048, 2_600),
        Server("l4-8b", Affine(0.055, 4e-4, 5e-4, 4e-7), 64, 2048, 3_000, Jitter(0.02),
               usd_per_hour=0.8),
    )
}  # fmt: skip

MIXES = {
    one.name: one
    for one in (
        Mix("chat", lognormal(280, 1.0), lognormal(200, 0.8), 3000, 1500),
        Mix("fixed", fixed(256), fixed(128)),
        Mix("bimodal", bimodal(120, 1200, 0.25), bimodal(40, 500, 0.3), 3000, 1200),
        Mix("zipf", zipf(1.8, 40), zipf(1.7, 30), 3000, 1200),
        Mix("rag", lognormal(1800, 0.5), lognormal(160, 0.6), 5000, 800),
        Mix("classify", lognormal(900, 0.6), uniform(4, 24), 4000, 24),
        Mix("reason", lognormal(250, 0.7), lognormal(900, 0.6), 1500, 2000),
        Mix("long", lognormal(2600, 0.4), lognormal(500, 0.5), 5000, 1500),
        Mix("tiny", lognormal(60, 0.6), lognormal(80, 0.6), 300, 400),
        Mix("tiny-fixed", fixed(64), fixed(64)),
    )
}

PAIRS = tuple(
    (server, mix)
    for server, mixes in (
        ("cpu-small", ("tiny", "tiny-fixed")),
        ("a100-8b", ("chat", "fixed", "bimodal", "zipf", "rag", "classify", "reason")),
        ("h100-8b", ("chat", "bimodal", "rag", "reason")),
        ("h100-70b-tp4", ("chat", "rag", "zipf")),
        ("retrograde", ("chat", "fixed", "reason")),
        ("moe", ("chat", "bimodal", "rag")),
        ("host-bound", ("chat", "fixed", "reason")),
        ("a100-tight-kv", ("chat", "long", "reason")),
        ("l4-8b", ("chat", "fixed", "tiny")),
    )
    for mix in mixes
)
"""Which server answers which mix: every law, every bottleneck."""
