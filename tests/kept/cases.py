"""The answers that are kept: which commands, of which example windows.

`python tests/kept/cases.py` writes them anew; only a change that is meant to move figures may.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner

from vllm_capacity.cli import cli
from vllm_capacity.interface import version_1

HERE = Path(__file__).parent
EXAMPLES = HERE.parent.parent / "data" / "examples"
WINDOWS = ("a100-gpt-oss-20b", "vllm-restart", "vllm-sweep", "vllm-two-replicas")
_TERMS = ("--usd-per-hour", "1.64", "--slo-ttft", "2", "--slo-itl", "0.1")
_NEW = ("at_most", "below")  # keys of alerts that version 1 did not have
_PARTS = {
    "vllm-sweep": ("--start", "2026-11-24T04:05:00Z", "--end", "2026-11-24T04:20:00Z"),
}
COMMANDS: dict[str, tuple[str, ...]] = {
    "figures": ("figures",),
    "figures-priced": ("figures", *_TERMS),
    "figures-price-row": ("figures", "--price", "RunPod community A100-80GB PCIe"),
    "cost-by-engine": ("cost", "--by", "engine", *_TERMS),
    "cost-by-model": ("cost", "--by", "model", *_TERMS),
    "plan": ("plan", "--gpu", "A100-80GB-PCIe", "--usd-per-hour", "1.64"),
    "plan-within-targets": ("plan", "--gpu", "A100-80GB-PCIe", "--demand", "12", *_TERMS),
    "alerts": ("alerts",),
}


def found(window: str, command: str) -> dict[str, Any]:
    """The command's JSON for the window."""
    verb, *options = COMMANDS[command]
    arguments = [verb, str(EXAMPLES / window), *options, "--json"]
    outcome = CliRunner().invoke(cli, arguments)
    assert outcome.exit_code in (0, 1), (arguments, outcome.output)  # 1: an alert fired
    result: dict[str, Any] = json.loads(outcome.stdout)
    return result


def kept_numbers(window: str, command: str) -> dict[str, float | None]:
    """Every number in the command's JSON, under the keys of the interface's first version."""
    result = found(window, command)
    if isinstance(result, list):
        return numbers([{key: one[key] for key in one if key not in _NEW} for one in result])
    return numbers(version_1(result))


def numbers(value: Any, path: str = "") -> dict[str, float | None]:
    """Every number, null and boolean below a value, by its path."""
    if isinstance(value, str):
        return {}
    if not isinstance(value, dict | list):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    below = [numbers(each, f"{path}.{key}") for key, each in items]
    return {at: number for each in below for at, number in each.items()}


if __name__ == "__main__":
    for window in WINDOWS:
        kept = {name: kept_numbers(window, name) for name in COMMANDS}
        HERE.joinpath(f"{window}.json").write_text(json.dumps(kept, indent=0) + "\n")
