"""Every number of the machine interface, on every example window, is what it was: to the last bit.

The numbers were kept before the code was rebuilt (tests/kept/cases.py); `RENAMED` is how their
keys are called since.
"""

from __future__ import annotations

import json

import pytest
from kept.cases import COMMANDS, HERE, WINDOWS, found, numbers

RENAMED: dict[str, str] = {}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("window", WINDOWS)
def test_every_number_is_kept(window: str, command: str) -> None:
    kept = json.loads(HERE.joinpath(f"{window}.json").read_text())[command]
    expected = {_renamed(path): number for path, number in kept.items()}
    seen = numbers(found(window, command))
    assert {path: seen.get(path, "gone") for path in expected} == expected


def _renamed(path: str) -> str:
    for old, new in RENAMED.items():
        path = path.replace(old, new)
    return path
