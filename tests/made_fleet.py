"""A small simulated fleet: two models behind balancers, a pod replaced, labels of targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from tests.truth_server import loads
from tests.truth_server.cases import LEAD
from tests.truth_server.fleets import Fleet, Kept, Member, Service, write
from tests.truth_server.servers import MIXES
from tests.truth_server.truth import truths

SECONDS = 1200.0
REPLACED_AT = 500.0


def members(model: str, team: str, count: int) -> tuple[Member, ...]:
    """Replicas of one deployment, of which the first is idle and the last replaced."""
    labels = {"deployment": model, "team": team}
    found = [
        Member(f"{model}-{place}:8000", labels={**labels, "pod": f"{model}-{place}"})
        for place in range(count)
    ]
    found[0] = replace(found[0], is_used=False)
    old = replace(found[-1], end=REPLACED_AT)
    name = f"{model}-{count}"
    new = Member(f"{name}:8000", start=REPLACED_AT + 30, labels={**labels, "pod": name})
    return (*found[:-1], new, old)


def service(model: str, team: str, count: int, rate: float, rng: np.random.Generator) -> Service:
    """A model of small servers; for five minutes four times `rate` requests come each second."""
    law = loads.spells(rate, 4 * rate, [(600.0, 900.0)])
    times = loads.varying(rng, law, 4 * rate, LEAD, SECONDS).times
    prompts, outputs = MIXES["tiny"].draw(rng, len(times))
    return Service(
        model, "cpu-small", "tiny", members(model, team, count), "round robin", times, prompts,
        outputs,
    )  # fmt: skip


def made_fleet(seed: int) -> Fleet:
    """Of 4 and 3 replicas, under loads that the seed decides."""
    rng = np.random.default_rng((seed, 61))
    services = (
        service("chat", "search", 4, float(rng.uniform(0.2, 3.0)), rng),
        service("code", "tools", 3, float(rng.uniform(0.1, 2.0)), rng),
    )
    return Fleet(f"made-{seed}", services, SECONDS, 10.0, "spells", seed)


def written(seed: int, path: Path) -> dict[str, Kept]:
    """The window of a simulated fleet at `path`, and its requests by model."""
    return write(path, made_fleet(seed))


def lopsided(seed: int) -> Fleet:
    """Eight replicas; a load balancer uses two, filled by a rush: the others can be removed."""
    rng = np.random.default_rng((seed, 67))
    full = 2 * truths()["cpu-small", "tiny"].requests_per_second
    law = loads.spells(0.3 * full, float(rng.uniform(0.9, 1.3)) * full, [(400.0, 800.0)])
    times = loads.varying(rng, law, 1.3 * full, LEAD, SECONDS).times
    prompts, outputs = MIXES["tiny"].draw(rng, len(times))
    replicas = tuple(
        Member(f"gpu-{place}:8000", float(rng.uniform(0.96, 1.04)), is_used=place < 2)
        for place in range(8)
    )
    own = ("chat", "cpu-small", "tiny", replicas, "least requests", times, prompts, outputs)
    return Fleet(f"lopsided-{seed}", (Service(*own),), SECONDS, 10.0, "spells", seed)
