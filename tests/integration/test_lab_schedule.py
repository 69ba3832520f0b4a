"""The Jupyter job, as `schedule jupyter` installs it, run by jupyter-scheduler in a real Lab."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import nbformat
import pytest

from tests.cli import command_line
from tests.integration.asking import CLIENT
from tests.integration.real_lab import Lab, real_lab
from tests.integration.real_prometheus import backfill, real_prometheus, wait_until
from vllm_capacity.render.report.metadata import page_metadata

TARGET = 'instance="gpu-0:8000",job="vllm"'
ENGINE = f'{TARGET},engine="0",model_name="m"'


def exposed(start: datetime) -> str:
    """OpenMetrics of a server that served one request per minute for two days."""
    families = {
        f'vllm:request_success_total{{{ENGINE},finished_reason="stop"}}': lambda n: 5 * n,
        f"vllm:generation_tokens_total{{{ENGINE}}}": lambda n: 500 * n,
        f"vllm:prompt_tokens_total{{{ENGINE}}}": lambda n: 2000 * n,
        f"vllm:num_requests_running{{{ENGINE}}}": lambda n: 1,
        f"vllm:num_requests_waiting{{{ENGINE}}}": lambda n: 0,
        f"up{{{TARGET}}}": lambda n: 1,
    }
    lines = [
        f"{series} {value(n)} {(start + timedelta(minutes=5 * n)).timestamp():.0f}"
        for series, value in families.items()
        for n in range(2 * 288)
    ]
    return "\n".join([*lines, "# EOF", ""])


@dataclass(frozen=True)
class Scheduler:
    """jupyter-scheduler's API in a Lab."""

    lab: Lab

    def asked(self, method: str, path: str, **body: object) -> dict:
        headers = {"Authorization": f"token {self.lab.token}"}
        url = f"{self.lab.url}/scheduler{path}"
        answer = CLIENT.request(method, url, headers=headers, json=body or None, timeout=60)
        assert answer.is_success, answer.text
        return answer.json() if answer.content else {}

    def ended(self, job: str) -> dict:
        wait_until(lambda: self._status(job) in ("COMPLETED", "FAILED"), seconds=180)
        return self.asked("GET", f"/jobs/{job}")

    def _status(self, job: str) -> str:
        return self.asked("GET", f"/jobs/{job}")["status"]


@pytest.fixture
def installed(tmp_path, monkeypatch, capsys):
    """A folder with settings, Lab's root with what `schedule` put there, the last of two days."""
    today = datetime.combine(datetime.now(UTC).date(), time(), UTC)
    days = [today - timedelta(days=n) for n in (2, 1)]
    folder, root = tmp_path / "capacity", tmp_path / "root"
    for each in (folder, root):
        each.mkdir()
    backfill(folder, exposed(days[0]))
    with real_prometheus(folder, []) as url:
        (folder / "vllm-capacity.toml").write_text(
            f"[source]\nfrom = '{url}'\n[days]\nlast = '2d'\n[price]\nusd_per_hour = 1.64\n"
        )
        monkeypatch.chdir(folder)
        words = ["schedule", "jupyter", "--install", "--root", str(root), "--at", "05:30"]
        assert command_line.run(monkeypatch, capsys, *words)[0] == 0
        yield folder, root, str(days[1].date())


def test_jupyter_scheduler_takes_the_job_and_runs_it(installed, tmp_path):
    folder, root, day = installed
    home = tmp_path / "home"
    home.mkdir()
    body = json.loads((root / "vllm-capacity-report.json").read_text())
    with real_lab(root, home) as lab:
        scheduler = Scheduler(lab)
        definition = scheduler.asked("POST", "/job_definitions", **body)["job_definition_id"]
        kept = scheduler.asked("GET", f"/job_definitions/{definition}")
        assert (kept["schedule"], kept["timezone"], kept["active"]) == ("30 5 * * *", "UTC", True)
        started = scheduler.asked(
            "POST", f"/job_definitions/{definition}/jobs", parameters={"last": '"1d"'}
        )
        job = scheduler.ended(started["job_id"])
        assert (job["status"], job["parameters"]) == ("COMPLETED", {"last": '"1d"'}), job
        scheduler.asked("GET", f"/jobs/{started['job_id']}/download_files")
        wait_until(lambda: list(root.glob("jobs/**/*.html")) != [], seconds=60)
    (page,) = (folder / "reports").glob("2*.html")  # by the settings there would be two
    assert (page.name, page_metadata(page).line.window) == (f"{day}.html", day)
    notebooks = [nbformat.read(each, as_version=4) for each in root.glob("jobs/**/*.ipynb")]
    outputs = [o for each in notebooks for c in each.cells for o in c.get("outputs", ())]
    printed = "".join(output.text for output in outputs)
    assert printed.split() == [str(Path("reports", page.name))]
