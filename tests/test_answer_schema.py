"""The schema of the machine interface is that of its types, and the committed file is it."""

import json
from importlib.resources import files

import pytest

from tests.answering import answer, plan
from vllm_capacity.answer import schema
from vllm_capacity.interface import version_1
from vllm_capacity.plan import PlanRequest

SCHEMA = files("vllm_capacity").joinpath("answers.schema.json")


def test_the_committed_schema_is_made_of_the_types():
    """Made anew by `make schema`."""
    kept = json.loads(SCHEMA.read_text())
    assert kept == json.loads(json.dumps(schema()))


def test_every_key_is_required():
    parts = schema()["$defs"].values()
    assert all(
        part["required"] == list(part["properties"]) for part in parts if "properties" in part
    )


@pytest.mark.parametrize(
    ("path", "old"),
    [
        pytest.param("saturation", "first_limit", id="bottleneck"),
        pytest.param("cost", "utilisation", id="utilization"),
        pytest.param("slo", "capacity_output_tokens_per_second", id="throughput within targets"),
    ],
)
def test_an_old_key_is_there_in_the_first_version(sweep, path, old):
    assert old in version_1(answer(sweep))[path]
    assert old not in answer(sweep)[path]


def test_the_first_version_has_a_basis_in_one_line_and_no_new_key(sweep):
    result = version_1(plan(sweep, PlanRequest()))
    assert "schema_version" not in result
    assert set(result["replicas"]) == {"low", "mid", "high", "basis", "reason"}
    assert isinstance(result["replicas"]["basis"], str)


def test_the_first_version_bounds_what_was_lost_by_two_numbers(sweep):
    assert set(version_1(answer(sweep))["requests"]["lost"]) == {"low", "high"}
