"""The sessions that the README and the package's docstrings show run as they stand."""

import doctest
from pathlib import Path

import pytest

import vllm_capacity
from vllm_capacity import api

README = Path(__file__).parent.parent / "README.md"


def test_the_session_of_the_readme_runs():
    found = doctest.testfile(str(README), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert found.attempted > 8
    assert found.failed == 0


@pytest.mark.parametrize("module", [vllm_capacity, api], ids=lambda module: module.__name__)
def test_the_examples_of_docstrings_run(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert found.failed == 0
