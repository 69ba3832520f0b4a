from datetime import UTC, datetime, timedelta

import pytest

import vllm_capacity as vc
from vllm_capacity.errors import InputError
from vllm_capacity.facts.fleet import load_fleet, of_targets, rate_in_force
from vllm_capacity.timerange import TimeRange

START = datetime(2026, 11, 1, tzinfo=UTC)
DAY = TimeRange(START, START + timedelta(hours=24))

CSV = """instance,gpus_per_engine,price,usd_per_hour,from,until
a*:8000,2,,1.50,,2026-11-01T06:00:00Z
a*:8000,2,,2.50,2026-11-01T06:00:00Z,
b*:8000,1,A100-80GB-PCIe RunPod secure 2026-11-09,,,
"""
YAML = """
- {instance: "a*:8000", gpus_per_engine: 2, usd_per_hour: 1.5, until: 2026-11-01T06:00:00Z}
- {instance: "a*:8000", gpus_per_engine: 2, usd_per_hour: 2.5, from: "2026-11-01T06:00:00Z"}
- {instance: "b*:8000", price: A100-80GB-PCIe RunPod secure 2026-11-09}
"""


def written(folder, name, text):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(("name", "text"), [("fleet.csv", CSV), ("fleet.yaml", YAML)])
def test_a_price_change_within_the_window_is_a_mean_over_its_hours(tmp_path, name, text):
    rate = rate_in_force(load_fleet(written(tmp_path, name, text)), "a1:8000", DAY)
    assert rate.gpus_per_engine == 2
    assert rate.usd_per_gpu_hour.mid * 24 == pytest.approx(6 * 1.5 + 18 * 2.5)
    assert "6 h at $1.5" in rate.usd_per_gpu_hour.sources


def test_a_row_of_the_price_list_keeps_its_provenance(tmp_path):
    rate = rate_in_force(load_fleet(written(tmp_path, "fleet.csv", CSV)), "b7:8000", DAY)
    assert rate.usd_per_gpu_hour.mid == 1.79
    assert "RunPod secure 2026-11-09" in rate.usd_per_gpu_hour.sources


def test_a_change_of_gpus_keeps_the_bill_exact(tmp_path):
    text = (
        "instance,gpus_per_engine,usd_per_hour,from,until\n"
        "x,1,2.0,,2026-11-01T12:00:00Z\n"
        "x,4,3.0,2026-11-01T12:00:00Z,\n"
    )
    rate = rate_in_force(load_fleet(written(tmp_path, "fleet.csv", text)), "x", DAY)
    usd = 24 * rate.gpus_per_engine * rate.usd_per_gpu_hour.mid
    assert usd == pytest.approx(12 * 1 * 2.0 + 12 * 4 * 3.0)


def test_rules_match_the_labels_of_targets(tmp_path):
    text = (
        "- {match: '{team=\"search\"}', usd_per_hour: 1}\n"
        "- {match: '{team=~\"ads|shop\"}', instance: 'b*', gpus_per_engine: 2, usd_per_hour: 3}\n"
        "- {instance: '*', usd_per_hour: 9}\n"
    )
    labels = {"a": {"team": "search"}, "b": {"team": "ads"}, "c": {"team": "ads"}, "d": {}}
    rules = of_targets(load_fleet(written(tmp_path, "f.yaml", text)), labels)
    rates = {name: rate_in_force(rules, name, DAY) for name in ("a", "b", "c", "d")}
    found = {name: (r.gpus_per_engine, r.usd_per_gpu_hour.mid) for name, r in rates.items()}
    assert found == {"a": (1, 1), "b": (2, 3), "c": (1, 9), "d": (1, 9)}


def test_uncovered_hours_are_named(tmp_path):
    text = "instance,usd_per_hour,from\na*:8000,1.5,2026-11-01T06:00:00Z\n"
    rate = rate_in_force(load_fleet(written(tmp_path, "fleet.csv", text)), "a1:8000", DAY)
    assert "from 2026-11-01T00:00:00Z to 2026-11-01T06:00:00Z" in rate.usd_per_gpu_hour.reason


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        pytest.param(
            "f.yaml",
            "- {match: team, usd_per_hour: 1}",
            "rule 1: Cannot read the sel",
            id="no labels",
        ),
        pytest.param("f.csv", "instance\nx\n", "either a price", id="no price"),
        pytest.param("f.csv", "instance,colour,usd_per_hour\nx,red,1\n", "colour", id="a typo"),
        pytest.param("f.csv", "instance,usd_per_hour\nx,cheap\n", "number", id="no number"),
        pytest.param("f.csv", "instance,usd_per_hour\n", "no rules", id="empty"),
        pytest.param("f.yaml", "a: 1", "list of rules", id="no list"),
        pytest.param("f.yaml", "[}", "not YAML", id="no YAML"),
        pytest.param(
            "f.csv",
            "instance,usd_per_hour,from,until\nx,1,2026-11-02,2026-11-01\n",
            "after from",
            id="it ends before it starts",
        ),
    ],
)
def test_a_broken_mapping_file_is_refused(tmp_path, name, text, says):
    with pytest.raises(InputError, match=says):
        load_fleet(written(tmp_path, name, text))


def test_a_missing_mapping_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="Cannot read"):
        load_fleet(tmp_path / "none.csv")


def test_rules_by_labels_count_in_python_too(tmp_path):
    rules = tmp_path / "fleet.yaml"
    rules.write_text("- {match: '{instance=~\".+\"}', usd_per_hour: 2}\n")
    assert vc.open("vllm-sweep").analyze(price_rules=rules).cost.total.mid > 0
