"""How few lines it takes to add something that is shown; the proof is a copy that has them.

A latency target is three places: its field, that of its attainment, the list of commands in the
docs. A latency that is shown is two: its row of `LATENCIES`, its field in the answer. Everything
else (options, columns, tables, charts, definitions, parameters of notebooks) follows from them.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_capacity.assumptions import TARGETS

ROOT = Path(__file__).resolve().parents[1]
ABOUT = '"queue time", "--slo-queue", "waits for a place", QUEUE'
FIELD = f"    queue_p95_seconds: float | None = _target({ABOUT})\n"
ADDED = (
    ("assumptions.py", "from vllm_capacity.facts.metrics import ITL, TTFT", ", QUEUE"),
    ("assumptions.py", '"later tokens (ITL)", ITL)\n', FIELD),
    ("answer.py", "    itl_attainment: Estimate\n", "    queue_attainment: Estimate\n"),
    (
        "figures/latency.py",
        '"end-to-end latency (E2E)"),\n',
        '    "queue": Shown(QUEUE, "queue time, from arrival on"),\n',
    ),
    ("figures/latency.py", "    e2e_seconds: Quantiles\n", "    queue_seconds: Quantiles\n"),
)
SESSION = """
import json

from click.testing import CliRunner

import vllm_capacity as vc
from vllm_capacity.cli.figures import figures
from vllm_capacity.render.prose.verdict import within_targets
from vllm_capacity.render.report.run import checked_parameters, declared_parameters
from vllm_capacity.resources import shipped

w = vc.open("vllm-sweep")["04:12":"04:18"]
a = w.analyze(slo="queue 0.001")
chart = a.charts.latency_by_load()
notebook = shipped("notebooks/cost-report.ipynb")
given = {"queue_p95_seconds": "3"}
print(json.dumps({
    "option": CliRunner().invoke(figures, ["--help"]).output,
    "attainment": a.answer.slo.as_dict()["queue_attainment"]["mid"],
    "column": a.steps["queue_p95_seconds"].max(),
    "throughput": a.slo.throughput.reason or list(a.slo.throughput.basis),
    "table": repr(vc.tables.slo_table(a)),
    "sentence": within_targets(a.answer),
    "chart": json.dumps(chart.spec if hasattr(chart, "spec") else chart.to_dict()),
    "definition": str(a.explain("slo.queue_attainment")),
    "latency": repr(vc.tables.latency_table(a)),
    "series": a.series.columns,
    "json": a.answer.latency.as_dict()["queue_seconds"]["p95"],
    "quantiles": str(a.explain("latency.queue_seconds")),
    "parameter": checked_parameters(declared_parameters(notebook), given, notebook="n")["slo"],
}))
"""


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(
        ROOT / "vllm_capacity", root / "vllm_capacity", ignore=shutil.ignore_patterns("__pycache__")
    )
    for name in ("data", "notebooks"):
        (root / name).symlink_to(ROOT / name)
    for file, after, more in ADDED:
        path = root / "vllm_capacity" / file
        text = path.read_text(encoding="utf-8")
        assert text.count(after) == 1, (file, after)
        path.write_text(text.replace(after, after + more), encoding="utf-8")
    ran = subprocess.run(
        [sys.executable, "-c", SESSION],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return json.loads(ran.stdout)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        pytest.param("option", "--slo-queue", id="the command line has its option"),
        pytest.param("throughput", "queue time ≤ 0.001 s", id="capacity within the targets"),
        pytest.param("table", "p95 queue time", id="the table of targets has its row"),
        pytest.param("sentence", "of waits for a place", id="the verdict reports the miss"),
        pytest.param("chart", "queue time target", id="the chart by load has its rule"),
        pytest.param("definition", "queue time within target", id="it is explained"),
        pytest.param("latency", "queue time, from arrival on", id="a shown latency: its rows"),
        pytest.param("series", "queue_p95_seconds_upper", id="its quantiles over time"),
        pytest.param("json", "'lower': 2.5", id="its key in the machine interface"),
        pytest.param("quantiles", "Queue time, from arrival on", id="its definition"),
        pytest.param("parameter", "itl 0.1, queue 3.0", id="every notebook takes it"),
    ],
)
def test_what_two_added_lines_bring_is_shown_everywhere(shown, where, expected):
    assert expected in str(shown[where])


def test_a_target_of_two_added_lines_is_computed(shown):
    assert (0 < shown["attainment"] < 0.95, shown["column"] > 0.001) == (True, True)


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.label)
def test_the_list_of_commands_names_the_option_of_each_target(target):
    assert re.search(rf"{target.option}\b", (ROOT / "docs/commands.md").read_text(encoding="utf-8"))
