import re
from pathlib import Path

import nbformat
import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.render.report.run import (
    Parameter,
    checked_parameters,
    declared_parameters,
    given_parameters,
)

PYTHON = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
DECLARED = tuple(
    Parameter(name, annotation, "", "")
    for name, annotation in (
        ("window", "str"),
        ("gpus_per_engine", "float"),
        ("count", "int"),
        ("is_strict", "bool"),
        ("usd_per_hour", "Optional[float]"),
        ("names", "list"),
        ("ttft_slo_seconds", "float"),
        ("price", "str"),
        ("fleet", "str"),
        ("time_zone", "str"),
    )
)


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        pytest.param("window", "a=b", "a=b", id="text stays as it is"),
        pytest.param("window", "", "", id="empty text is text"),
        pytest.param("gpus_per_engine", "2", 2.0, id="a whole number is a float"),
        pytest.param("gpus_per_engine", 2, 2.0, id="so is an int of a caller"),
        pytest.param("count", "-3", -3, id="an int"),
        pytest.param("is_strict", "Yes", True, id="yes"),
        pytest.param("is_strict", "0", False, id="0 is no"),
        pytest.param("usd_per_hour", "1.64", 1.64, id="an optional that is there"),
        pytest.param("usd_per_hour", "none", None, id="an optional that is not"),
        pytest.param("usd_per_hour", None, None, id="None of a caller"),
    ],
)
def test_value_is_read_in_the_declared_type(name, given, value):
    checked = checked_parameters(DECLARED, {name: given}, notebook="n.ipynb")[name]
    assert (checked, type(checked)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "given", "output"),
    [
        pytest.param("windw", "x", "Did you mean window?", id="misspelt: the nearest is named"),
        pytest.param("zzz", "x", "It has: window, gpus_per_engine", id="unknown: all are named"),
        pytest.param("x=1;print(2);y", "5", "has no parameter", id="a name is never code"),
        pytest.param("time_zone", "Mars", "No time zone 'Mars'", id="no zone of the IANA list"),
        pytest.param("time_zone", "../etc", "No time zone", id="nor a path"),
        pytest.param("gpus_per_engine", "two", "'two' is not one", id="no float"),
        pytest.param("gpus_per_engine", "nan", "'nan' is not one", id="NaN is no price"),
        pytest.param("gpus_per_engine", "inf", "'inf' is not one", id="nor is infinity"),
        pytest.param("gpus_per_engine", True, "True is not one", id="a bool is no number"),
        pytest.param("count", "1.5", "'1.5' is not one", id="no int"),
        pytest.param("count", "", "'' is not one", id="nothing is no int"),
        pytest.param("is_strict", "maybe", "'maybe' is not one", id="no bool"),
        pytest.param("window", 3, "3 is not one", id="a number is no text"),
        pytest.param("names", "[1]", "only int, float, str", id="a type not to be set"),
        pytest.param("gpus_per_engine", "0", "must be above 0", id="no GPU"),
        pytest.param("ttft_slo_seconds", "-1", "must be above 0 seconds", id="no target"),
        pytest.param("price", "Z9000 of nobody", "Z9000", id="no row of the price list"),
        pytest.param("price_rules", "/nowhere.csv", "/nowhere.csv", id="no mapping file"),
    ],
)
def test_a_wrong_parameter_is_reported(name, given, output):
    with pytest.raises(InputError, match=re.escape(output)):
        checked_parameters(DECLARED, {name: given}, notebook="n.ipynb")


@pytest.mark.parametrize(
    ("given", "declared"),
    [
        pytest.param("ttft_p95_seconds", "ttft_slo_seconds", id="today's name, an older notebook"),
        pytest.param("itl_slo_seconds", "itl_p95_seconds", id="an older name, today's notebook"),
    ],
)
def test_parameter_is_found_under_another_release_s_name(given, declared):
    cell = (Parameter(declared, "float", "2.0", ""),)
    assert checked_parameters(cell, {given: "1.5"}, notebook="n.ipynb") == {declared: 1.5}


SLO = (Parameter("slo", "str", '"ttft 2.0, itl 0.1"', ""),)


@pytest.mark.parametrize(
    ("given", "slo"),
    [
        pytest.param({"slo": "itl 0.3"}, "itl 0.3", id="all of them"),
        pytest.param({"slo": ""}, "", id="none"),
        pytest.param({"ttft_slo_seconds": "3"}, "ttft 3.0, itl 0.1", id="one, by its older name"),
        pytest.param({"itl_p95_seconds": 1}, "ttft 2.0, itl 1.0", id="one, as a number"),
        pytest.param({"itl_p95_seconds": "none"}, "ttft 2.0", id="one less"),
        pytest.param(
            {"slo": "ttft 1", "itl_p95_seconds": "2"}, "ttft 1.0, itl 2.0", id="one on top of all"
        ),
    ],
)
def test_latency_targets_are_one_parameter(given, slo):
    assert checked_parameters(SLO, given, notebook="n.ipynb") == {"slo": slo}


@pytest.mark.parametrize(
    ("given", "output"),
    [
        pytest.param({"slo": "p99 2"}, "Cannot read the latency target", id="no target"),
        pytest.param({"ttft_slo_seconds": "soon"}, "'soon' is not one", id="no seconds"),
        pytest.param({"itl_p95_seconds": "-1"}, "above 0 seconds", id="no time"),
    ],
)
def test_a_wrong_latency_target_is_reported(given, output):
    with pytest.raises(InputError, match=output):
        checked_parameters(SLO, given, notebook="n.ipynb")


def test_notebook_without_parameters_takes_none():
    with pytest.raises(InputError, match="declares no parameters"):
        checked_parameters((), {"window": "x"}, notebook="n.ipynb")


@pytest.mark.parametrize(
    ("pairs", "output"),
    [
        pytest.param(["window"], "write -p name=value", id="no equals sign"),
        pytest.param(["a b=1"], "write -p name=value", id="no identifier"),
        pytest.param(["a=1", "a=2"], "given twice", id="twice"),
    ],
)
def test_a_wrong_pair_is_reported(pairs, output):
    with pytest.raises(InputError, match=output):
        given_parameters(pairs)


def test_pairs_are_split_at_the_first_equals_sign():
    assert given_parameters(["note=a=b", "n=1"]) == {"note": "a=b", "n": "1"}


def test_parameters_are_those_the_notebook_declares(tmp_path: Path):
    cell = nbformat.v4.new_code_cell(
        'window: str = "x"  # its name\nusd_per_hour: "Optional[float]" = None  # dollars',
        metadata={"tags": ["parameters"]},
    )
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell], metadata=PYTHON), path)
    assert declared_parameters(path) == (
        Parameter("window", "str", '"x"', "its name"),
        Parameter("usd_per_hour", "Optional[float]", "None", "dollars"),
    )


def test_a_notebook_without_a_kernel_is_reported(tmp_path: Path):
    cell = nbformat.v4.new_code_cell("n: int = 1", metadata={"tags": ["parameters"]})
    path = tmp_path / "n.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), path)
    with pytest.raises(InputError, match="No kernel name found"):
        declared_parameters(path)
