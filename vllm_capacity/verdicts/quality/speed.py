"""What a window's own throughput says against it: times in which a server was slowed."""

from __future__ import annotations

from collections.abc import Sequence

from vllm_capacity.verdicts.quality.finding import Finding, span
from vllm_capacity.verdicts.saturation.fit import SaturationFit
from vllm_capacity.verdicts.saturation.regimes import Judged


def slowed(fits: Sequence[SaturationFit]) -> list[Finding]:
    """One finding an engine that gave far less for a while than it could; none for the others.

    The capacity does not rest on those steps.
    """
    return [_finding(fit) for fit in fits if fit.slowed]


def _finding(fit: SaturationFit) -> Finding:
    seconds = sum(step.seconds for step in fit.slowed)
    tokens = sum(step.step["output_tokens_per_second"] * step.seconds for step in fit.slowed)
    best = "" if fit.best is None else f", its best minute {fit.best.output:,.0f}"
    running = sum((step.running or 0.0) * step.seconds for step in fit.slowed) / seconds
    spells = _spells(fit.slowed)
    return Finding(
        check="slowed",
        severity="warning",
        count=len(spells),
        effect=(
            f"{fit.engine}: for {seconds:,.0f} s it gave {tokens / seconds:,.0f} output tokens/s "
            f"with {running:,.1f} requests running{best}: something outside slowed it, or it was "
            "asked for something else. The capacity leaves that time out."
        ),
        when="; ".join(span(spell[0].step["start"], spell[-1].step["end"]) for spell in spells),
    )


def _spells(steps: Sequence[Judged]) -> list[list[Judged]]:
    """The steps in groups that follow each other without a hole."""
    spells: list[list[Judged]] = []
    for step in steps:
        if spells and spells[-1][-1].step["end"] == step.step["start"]:
            spells[-1].append(step)
        else:
            spells.append([step])
    return spells
