"""All of Prometheus' cases: where we agree, and each deliberate difference with its reason."""

import csv
import math

import pytest
from promql import CASES, HERE, REFUSED, all_rows, answer, expected

from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window

NOTHING = "nothing"  # no series in the result
TOLERANCE = 1e-6  # relative: the published answers are rounded
WORDS = {"none": None, "refused": REFUSED, "nothing": NOTHING}

with (HERE / "differences.csv").open() as table:
    DIFFERENCES = list(csv.DictReader(table))
OURS = {
    (row["case"], row["labels"]): WORDS[row["ours"]] if row["ours"] in WORDS else float(row["ours"])
    for row in DIFFERENCES
}
BY_ID = {case["id"]: case for case in CASES}


@pytest.fixture(scope="module")
def window(tmp_path_factory):
    """One window that holds every case, each as a target of its own."""
    path = tmp_path_factory.mktemp("conformance") / "promql"
    return open_window(write_window(path, all_rows(), {"source": "Prometheus' test cases"}))


def agree(ours, theirs):
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=TOLERANCE)
    return ours == theirs


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['id']} {case['expr']}")
def test_case(case, window):
    ours, theirs = answer(case, window), expected(case)
    for labels in sorted({*ours, *theirs}):
        output, promql = ours.get(labels, NOTHING), theirs.get(labels, NOTHING)
        difference = (case["id"], labels)
        assert agree(output, OURS.get(difference, promql)), labels
        assert agree(output, promql) == (difference not in OURS), labels


def test_there_are_as_many_cases_as_were_published():
    assert len(BY_ID) == 156


def test_every_difference_names_a_case_and_a_reason():
    assert {row["case"] for row in DIFFERENCES} <= set(BY_ID)
    assert all(row["reason"].endswith(".") for row in DIFFERENCES)
    assert len(OURS) == len(DIFFERENCES)


@pytest.mark.parametrize("row", DIFFERENCES, ids=lambda row: f"{row['case']} {row['labels']}")
def test_a_difference_is_of_a_kind_its_function_allows(row):
    case = BY_ID[row["case"]]
    allowed = {
        ("increase", "anchored"): {"old base", "born inside"},
        ("resets", "anchored"): {"old base"},
        ("increase", "smoothed"): {"smoothed"},
        ("rate", "smoothed"): {"smoothed"},
        ("increase", None): {"extrapolated", "born inside"},
        ("rate", None): {"extrapolated", "born inside"},
        ("histogram_quantile", None): {"overflow", "bad quantile", "falling buckets"},
        ("histogram_fraction", None): {"bad range"},
    }
    assert row["kind"] in allowed[case["fn"], case["modifier"]]
