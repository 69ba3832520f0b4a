"""Every number of the machine interface, on every example window, is what it was: to the last bit.

The numbers were kept before the code was rebuilt (tests/kept/cases.py), under the keys of the
interface's first version: `vllm_capacity/interface.py` maps the keys of today to those.
"""

from __future__ import annotations

import json

import pytest

from tests.kept.cases import COMMANDS, HERE, WINDOWS, kept_numbers


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("window", WINDOWS)
def test_every_number_is_kept(window: str, command: str) -> None:
    kept = json.loads(HERE.joinpath(f"{window}.json").read_text())[command]
    assert kept_numbers(window, command) == kept
