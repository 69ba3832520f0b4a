"""A new GPU, price, model, architecture, family or spelling is one row of one table.

Rows are added to a copy of the package and its tables, which then answers in a process of its own.
"""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCED = {"source": "a test", "date": "2026-11-24"}
NEW_ROWS = {  # table: the row to copy, and the cells that differ
    "gpu_specs.csv": ("B200-180GB", {"gpu": "B400-300GB", "mem_bw_tb_s": "15.4"}),
    "gpu_prices.csv": (
        "H100-80GB",
        {
            "gpu": "B400-300GB",
            "form_factor": "SXM",
            "provider": "Nimbus",
            "tier": "on-demand",
            "usd_per_gpu_hour": "9.5",
            "region": "",
        },
    ),
    "llms.csv": ("Qwen/Qwen3-8B", {"model": "Owner/Newcomer-8B"}),
    "vllm_metrics.csv": (
        "vllm:num_preemptions_total",
        {"name": "vllm:thoughts_total", "aliases": "vllm:old_thoughts_total"},
    ),
    "metric_equivalents.csv": (
        "sglang",
        {"exposed": "sglang:thoughts_total", "metric": "vllm:thoughts_total"},
    ),
}
RUBIN = {"gpu": "R100-288GB", "arch": "Rubin sm110"}
QUESTIONS = """
import json
from vllm_capacity.facts import metrics
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.prices import choose_price
from vllm_capacity.verdicts.hardware.question import Question
from vllm_capacity.verdicts.hardware.what_if import what_if

def rate(gpu, model="newcomer-8b"):
    found = what_if(Question(
        llm=find_llm(model), dtype="bf16", to_dtype="bf16", gpus=1,
        from_gpu=find_gpu("H100-80GB-SXM"), to_gpu=find_gpu(gpu),
        output_tokens_per_second=3000.0, input_tokens=500.0, output_tokens=200.0,
    ))
    return found.mid or found.reason

print(json.dumps({
    "gpu": rate("B400-300GB-SXM") > rate("B200-180GB-SXM"),
    "price": choose_price(gpu="B400-300GB-SXM").mid,
    "model": find_llm("newcomer-8b").model,
    "family": metrics.match("ray_vllm_thoughts").metric.name,
    "older name": metrics.match("vllm_old_thoughts_total").alias_priority,
    "spelling": metrics.match("sglang_thoughts").metric.name,
    "server": metrics.framework("sglang_thoughts"),
    "architecture": rate("R100-288GB-SXM"),
}))
"""


def add_row(table: Path, like: str, changed: dict[str, str]) -> None:
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    old = next(row for row in rows if like in row.values())
    new = old | {name: value for name, value in SOURCED.items() if name in old} | changed
    with table.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, list(old)).writerow(new)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The package and its tables, the tables one row longer."""
    root = tmp_path_factory.mktemp("copy")
    shutil.copytree(
        ROOT / "vllm_capacity",
        root / "vllm_capacity",
        ignore=shutil.ignore_patterns("__pycache__", "_shipped"),
    )
    (root / "data").mkdir()
    for table in (ROOT / "data").glob("*.csv"):
        shutil.copy(table, root / "data")
    for name, (like, changed) in NEW_ROWS.items():
        add_row(root / "data" / name, like, changed)
    add_row(root / "data" / "gpu_specs.csv", "B200-180GB", RUBIN)
    return root


def asked(root: Path, question: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", question],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture(scope="module")
def answers(copy) -> dict:
    done = asked(copy, QUESTIONS)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("what", "answer"),
    [
        pytest.param("gpu", True, id="a GPU is asked about, and twice the bandwidth is faster"),
        pytest.param("price", 9.5, id="its price is chosen for it"),
        pytest.param("model", "Owner/Newcomer-8B", id="a model is found by its bare name"),
        pytest.param("family", "vllm:thoughts_total", id="a family is known in every spelling"),
        pytest.param("older name", 1, id="its older name ranks behind"),
        pytest.param("spelling", "vllm:thoughts_total", id="another server's name"),
        pytest.param("server", "sglang", id="and that server"),
    ],
)
def test_one_row_is_understood(answers, what, answer):
    assert answers[what] == answer


def test_gpu_of_an_architecture_without_a_row_is_refused_and_others_are_not(answers):
    assert answers["architecture"].startswith(
        "R100-288GB-SXM has the architecture 'Rubin', which data/gpu_architectures.csv does not"
    )


def test_architecture_is_one_row(copy, tmp_path):
    root = shutil.copytree(copy, tmp_path / "copy")
    add_row(root / "data" / "gpu_architectures.csv", "Blackwell", {"architecture": "Rubin"})
    assert isinstance(json.loads(asked(root, QUESTIONS).stdout)["architecture"], float)


def test_spelling_of_an_unknown_family_is_refused_with_the_nearest(copy, tmp_path):
    root = shutil.copytree(copy, tmp_path / "copy")
    changed = {"exposed": "sglang:ideas", "metric": "vllm:thought_total"}
    add_row(root / "data" / "metric_equivalents.csv", "sglang", changed)
    message = asked(root, QUESTIONS).stderr.splitlines()[-1]
    assert "sglang:ideas is vllm:thought_total" in message
    assert "does not have; nearest: vllm:thoughts_total, " in message
