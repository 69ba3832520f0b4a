"""Every number of the machine interface, on every example window, is what it was: to the last bit.

The numbers were kept before the code was rebuilt (tests/kept/cases.py), under the keys of the
interface's first version: `vllm_capacity/interface.py` maps the keys of today to those. (Where
linear algebra cannot run on the kernels that made them, they agree to 12 digits: tests/blas.py.)
"""

from __future__ import annotations

import json
import math

import pytest

from tests.blas import has_kept_kernels
from tests.kept.cases import COMMANDS, HERE, WINDOWS, kept_numbers

ACROSS_KERNELS = 1e-12


def differing(found, kept, *, rel_tol):
    """The numbers found and kept under the keys at which they differ."""
    pairs = {key: (found.get(key, "no key"), kept.get(key, "no key")) for key in found | kept}
    return {key: pair for key, pair in pairs.items() if not is_equal(*pair, rel_tol)}


def is_equal(one, other, rel_tol):
    is_float = isinstance(one, float) and isinstance(other, float)
    return one == other or (is_float and math.isclose(one, other, rel_tol=rel_tol))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("window", WINDOWS)
def test_every_number_is_kept(window: str, command: str) -> None:
    kept = json.loads(HERE.joinpath(f"{window}.json").read_text())[command]
    rel_tol = 0.0 if has_kept_kernels else ACROSS_KERNELS
    assert differing(kept_numbers(window, command), kept, rel_tol=rel_tol) == {}


def test_an_added_key_a_missing_key_and_a_last_digit_are_noticed() -> None:
    kept = {"a": 0.1, "b": None, "c": 1}
    assert differing({"a": 0.1, "b": None, "c": 1}, kept, rel_tol=0.0) == {}
    found = {"a": math.nextafter(0.1, 1), "b": 0.0, "d": 1}
    assert differing(found, kept, rel_tol=0.0).keys() == {"a", "b", "c", "d"}
    assert differing(found, kept, rel_tol=ACROSS_KERNELS).keys() == {"b", "c", "d"}
