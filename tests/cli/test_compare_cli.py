"""`compare`: two windows, two time ranges of one, prices, reasons, errors."""

import json
from datetime import timedelta

import pytest
from click.testing import CliRunner

import vllm_capacity as vc
from tests.long_window import MONDAY, long_window
from vllm_capacity.cli import cli
from vllm_capacity.errors import InputError, WindowError


def run(*words):
    return CliRunner().invoke(cli, ["compare", *words], catch_exceptions=False).stdout


@pytest.fixture(scope="module")
def replicas():
    return vc.open("vllm-two-replicas")


def test_a_window_compared_with_itself_has_not_changed(replicas):
    found = vc.compare(replicas.analyze(price=1.64), replicas.analyze(price=1.64))
    assert not any(each.is_more_than_noise for each in found.changes.values())
    assert found.itl.ratio.mid == pytest.approx(1.0)
    assert [each.kind for each in found.reasons] == []


def test_a_price_only_changes_cost(replicas):
    found = vc.compare(replicas.analyze(price=1.0), replicas.analyze(price=3.0))
    assert found.cost_at_same_load.ratio.mid == pytest.approx(3 * found.itl.ratio.mid)
    assert found.cost_at_same_load.is_more_than_noise
    assert not found.itl.is_more_than_noise
    assert [each.evidence for each in found.reasons] == ["$1 → $3 per engine-hour"]


def test_without_a_price_the_change_of_cost_is_that_of_speed(replicas):
    found = vc.compare(replicas.analyze(), replicas.analyze())
    assert found.cost_at_same_load.ratio.mid == pytest.approx(found.itl.ratio.mid)


def test_settings_that_differ_are_reasons(replicas):
    found = vc.compare(replicas.analyze(), vc.open("vllm-sweep").analyze())
    assert {"setting", "engines"} <= {each.kind for each in found.reasons}


@pytest.mark.parametrize(("hours", "idle"), [((0, 9), "A"), ((9, 0), "B"), ((0, 0), "A and B")])
def test_an_idle_side_is_named_and_is_another_load(tmp_path, hours, idle):
    sides = []
    for side, hour in zip("ab", hours, strict=True):
        long_window(tmp_path / side, days=0.2, start=MONDAY + timedelta(hours=hour))
        sides.append(vc.open(tmp_path / side).analyze(price=1.64))
    found = vc.compare(*sides)
    assert found.output.ratio.reason == f"nothing was served in {idle}"
    assert [each.kind for each in found.reasons] == (["load"] if len(idle) == 1 else [])


def test_json_has_ratios_and_verdicts():
    found = json.loads(run("vllm-two-replicas", "vllm-two-replicas", "--json"))
    assert found["itl"]["is_more_than_noise"] is False
    assert found["before"]["window"] == found["after"]["window"] == "vllm-two-replicas"
    assert found["schema_version"] == 2


def test_ranges_are_written_with_the_window():
    first, second = "vllm-two-replicas@..2026-11-24T06:01", "vllm-two-replicas@2026-11-24T06:01.."
    text = run(first, second, "--usd-per-hour", "1.64", "--usd-per-hour-b", "2")
    assert "A: vllm-two-replicas, 24 Nov 2026 05:58:46 to 06:01:00 UTC" in text
    assert "$1.64 → $2 per engine-hour" in text
    assert "within noise" in text


def test_an_invalid_range_is_refused():
    with pytest.raises(InputError, match="Cannot read 'noon' as a time"):
        run("vllm-two-replicas@noon..", "vllm-two-replicas")


def test_an_analysis_is_compared_with_a_window_under_its_own_price(replicas):
    half = replicas["06:01":].analyze(price=2.0)
    found = half.compare("vllm-two-replicas@..2026-11-24T06:01")
    assert found == vc.compare(replicas[:"06:01"].analyze(price=2.0), half)
    with pytest.raises(WindowError, match="No window 'nowhere'"):
        half.compare("nowhere")


def test_the_verdict_names_the_other_time_and_what_differs(replicas):
    found = vc.compare(replicas.analyze(price=1.0), replicas.analyze(price=3.0))
    first, same_load, _, last = vc.tables.comparison_verdict(found).sentences
    assert first.startswith("Compared with A, vllm-two-replicas, 24 Nov 2026")
    assert "an output token costs 200" in same_load
    assert "more (between" in same_load
    assert last == "What else differs: price."


def test_only_analyses_can_be_compared(replicas):
    with pytest.raises(InputError, match="Compare two analyses"):
        vc.compare(replicas, replicas)
