import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vllm_capacity

SOURCE = ast.parse(Path(vllm_capacity.__file__).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", vllm_capacity.__all__)
def test_exported_name_is_there(name):
    home = {"tables": "sections"}.get(name, name)
    assert getattr(vllm_capacity, name).__name__.rpartition(".")[2] == home


def test_exports_are_those_that_types_are_checked_by():
    checked = {
        alias.asname or alias.name
        for node in SOURCE.body
        if isinstance(node, ast.If)
        for each in node.body
        if isinstance(each, ast.ImportFrom)
        for alias in each.names
    }
    assert checked == set(vllm_capacity.__all__)


def test_exports_are_sorted():
    assert list(vllm_capacity.__all__) == sorted(vllm_capacity.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vllm_capacity.nonsense  # noqa: B018


def test_import_alone_loads_no_library():
    program = (
        "import sys, vllm_capacity\n"
        "print([n for n in ('polars', 'duckdb', 'altair') if n in sys.modules])"
    )
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout.strip() == "[]"
