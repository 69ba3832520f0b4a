"""Named scenarios: an engine, a load, scrape times and assumptions. All are simulated."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from difflib import get_close_matches

from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity.errors import InputError
from vllm_simulator.config import EngineConfig, Request, StepTime
from vllm_simulator.workload import (
    Arrivals,
    ClosedLoop,
    Lengths,
    OpenLoop,
    Phase,
    Prefix,
    Workload,
    poisson_requests,
    sampled,
)


class Scenario(Struct, frozen=True):
    """A simulation that can be run by name; `workload` takes the seed."""

    name: str
    about: str
    config: EngineConfig
    workload: Callable[[int], Workload]
    seconds: int
    scrape_seconds: int
    target: str
    assumptions: tuple[str, ...]
    start: datetime = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)
    seed: int = 1

    @property
    def scrape_times(self) -> range:
        """Scrape times in seconds since the start, from 0 to the end inclusive."""
        return range(0, self.seconds + 1, self.scrape_seconds)


# Fitted by hand to engine steps of the recorded sweep: 31 ms with 1 running, 93 ms with 28.
CPU_STEP = StepTime(
    base_seconds=0.0304,
    per_sequence_seconds=0.00118,
    per_prefill_token_seconds=0.0005,
    jitter_ratio=0.1,
)
CPU_SERVER = EngineConfig(
    model_name="tiny-random-llama",
    num_gpu_blocks=288,
    step_time=CPU_STEP,
    block_size=32,
    max_num_seqs=64,
    max_model_len=1024,
    frontend_seconds=0.005,
)
# Completions share one of 6 prefixes (40 % of 88 %), chats one of 3 system prompts (12 %).
CPU_LENGTHS = Lengths(
    prompt_median=180,
    prompt_sigma=0.7,
    output_median=100,
    output_sigma=0.7,
    max_prompt_tokens=620,
    max_output_tokens=400,
    prefixes=(
        *(Prefix(0.352 / 6, tokens) for tokens in (64, 96, 128, 192, 256, 384)),
        *(Prefix(0.04, tokens) for tokens in (104, 150, 237)),
    ),
    early_stop_ratio=0.12,
    cancel_ratio=0.02,
)
_CPU_ASSUMPTIONS = (
    "server: the recorded vLLM 0.32.0 sweep's flags (288 blocks of 32 tokens, max_num_seqs 64)",
    "step time: fitted to that sweep on one CPU core; not a GPU's",
    "lengths: sampled from the log-normals the sweep's load was drawn from, not replayed",
)

# 80 GiB x 0.92 less 12.816 GiB of weights, 4 GiB for activations and graphs; 16 tokens per block.
_A100_BLOCKS = int((80 * 0.92 - 12.816 - 4.0) * 1024**3) // (16 * 24_576)
# Published burst run (A100 SXM): 256 running, 5,180 output and 5,740 prompt tok/s, 49 ms per step.
A100_STEP = StepTime(
    base_seconds=0.005,
    per_sequence_seconds=0.000124,
    per_prefill_token_seconds=0.00004,
    jitter_ratio=0.08,
)
A100_SERVER = EngineConfig(
    model_name="openai/gpt-oss-20b",
    num_gpu_blocks=_A100_BLOCKS,
    step_time=A100_STEP,
    max_model_len=131_072,
    sliding_blocks=8,
    frontend_seconds=0.004,
)
A100_LENGTHS = Lengths(
    prompt_median=119,
    prompt_sigma=1.1,
    output_median=145,
    output_sigma=0.8,
    max_prompt_tokens=4096,
    max_output_tokens=1024,
    asks_maximum=True,
)
_A100_ASSUMPTIONS = (
    "totals as published for the worked example: 3.15 h, 5,138 requests, all successful",
    "token lengths are not published: log-normal with ShareGPT-like means of 215 in and 194 out",
    "arrivals: Poisson, the rate waving by 25 % over 90 minutes; no shared prefixes",
    "step time: 5 ms + 0.124 ms per running sequence + 0.04 ms per prefill token, set so that "
    "1,000 requests at once come within 10 % of the published 26.7 requests/s (GPUStack, "
    "2025-11-04: gpt-oss-20b, one A100 80GB SXM, vLLM 0.11.0); that a PCIe card has 5 % less "
    "bandwidth is not taken off",
    "KV cache: 24,576 B per token and 8 blocks per sequence for the sliding-window layers; 80 GiB "
    "x 0.92 less 12.8 GiB of weights and an assumed 4 GiB",
)


def _closed(phases: tuple[tuple[int, int], ...], lengths: Lengths) -> Callable[[int], Workload]:
    loop = tuple(Phase(clients, seconds) for clients, seconds in phases)
    return lambda seed: ClosedLoop(loop, sampled(lengths, seed), think_seconds=0.008)


def _poisson(arrivals: Arrivals, lengths: Lengths) -> Callable[[int], Workload]:
    return lambda seed: OpenLoop(poisson_requests(arrivals, lengths, seed))


def _burst(count: int, lengths: Lengths) -> Callable[[int], Workload]:
    at_once = Arrivals(count, 1.0, 1.0)
    return lambda seed: OpenLoop(poisson_requests(at_once, lengths, seed))


def _rising(seed: int) -> Workload:
    """Long prompts at half of the prefill capacity, then at 1.4 times the prefill capacity."""
    calm = poisson_requests(Arrivals(144, 0.0, 120.0), _LONG_PROMPTS, seed)
    busy = poisson_requests(Arrivals(840, 120.0, 360.0), _LONG_PROMPTS, seed + 1)
    return OpenLoop([*calm, *busy])


def _nobody(seed: int) -> Workload:
    requests: list[Request] = []
    return OpenLoop(requests)


_LONG_PROMPTS = Lengths(
    prompt_median=3600,
    prompt_sigma=0.35,
    output_median=10,
    output_sigma=1.0,
    max_prompt_tokens=7500,
    max_output_tokens=120,
)
_PREFILL_SERVER = EngineConfig(
    model_name="simulated-8b",
    num_gpu_blocks=60_000,
    step_time=StepTime(0.010, 0.0001, 0.0001, jitter_ratio=0.08),
    frontend_seconds=0.004,
)

SCENARIOS: tuple[Scenario, ...] = (
    Scenario(
        "a100-gpt-oss-20b",
        "the worked example: 3.15 h, 5,138 requests, one nearly idle A100",
        A100_SERVER,
        _poisson(Arrivals(5138, 5.0, 11_290.0, 0.25, 5400.0), A100_LENGTHS),
        seconds=11_340,
        scrape_seconds=10,
        target="a100-0:8000",
        assumptions=_A100_ASSUMPTIONS,
    ),
    Scenario(
        "a100-gpt-oss-20b-burst",
        "the same server with 1,000 requests at once, as in the published benchmark",
        A100_SERVER,
        _burst(1000, A100_LENGTHS),
        seconds=60,
        scrape_seconds=1,
        target="a100-0:8000",
        assumptions=_A100_ASSUMPTIONS[3:],
    ),
    Scenario(
        "sweep-cpu",
        "the recorded sweep's server under 1 to 64 clients",
        CPU_SERVER,
        _closed(
            (
                (0, 30),
                *((clients, 180) for clients in (1, 2, 4, 8, 16, 32, 48, 64)),
                (0, 60),
            ),
            CPU_LENGTHS,
        ),
        seconds=1530,
        scrape_seconds=2,
        target="cpu-0:8000",
        assumptions=_CPU_ASSUMPTIONS,
    ),
    Scenario(
        "client-bound",
        "a few clients that never fill the server",
        CPU_SERVER,
        _closed(((2, 150), (6, 150)), CPU_LENGTHS),
        seconds=300,
        scrape_seconds=2,
        target="cpu-0:8000",
        assumptions=_CPU_ASSUMPTIONS,
    ),
    Scenario(
        "kv-bound",
        "8 clients, then 40: KV blocks run out, requests are preempted and wait",
        CPU_SERVER,
        _closed(((8, 120), (40, 240)), CPU_LENGTHS),
        seconds=360,
        scrape_seconds=2,
        target="cpu-0:8000",
        assumptions=_CPU_ASSUMPTIONS,
    ),
    Scenario(
        "scheduler-bound",
        "4 clients, then 24, on a server that runs 8 at once: they wait while KV is low",
        replace(CPU_SERVER, max_num_seqs=8),
        _closed(((4, 120), (24, 240)), CPU_LENGTHS),
        seconds=360,
        scrape_seconds=2,
        target="cpu-0:8000",
        assumptions=(*_CPU_ASSUMPTIONS, "max_num_seqs 8 instead of 64"),
    ),
    Scenario(
        "prefill-bound",
        "long prompts, short answers: the queue grows while KV stays under 10 %",
        _PREFILL_SERVER,
        _rising,
        seconds=360,
        scrape_seconds=2,
        target="prefill-0:8000",
        assumptions=(
            "step time: 10 ms + 0.1 ms per prefill token, invented; no real server",
            "prompts of 3,600 tokens in the median, answers of 10",
        ),
    ),
    Scenario(
        "idle",
        "an idle server that gets no requests",
        CPU_SERVER,
        _nobody,
        seconds=600,
        scrape_seconds=10,
        target="cpu-0:8000",
        assumptions=(_CPU_ASSUMPTIONS[0],),
    ),
)


def scenario(name: str) -> Scenario:
    """The scenario of that name; raises InputError, with the nearest names, if there is none."""
    by_name = {known.name: known for known in SCENARIOS}
    if name not in by_name:
        near = get_close_matches(name, by_name, n=3) or sorted(by_name)
        raise InputError(f"No scenario {name!r}; there are: {', '.join(near)}.")
    return by_name[name]
