"""Schedules as their runners read them: cron, systemd, Kubernetes, jupyter-scheduler."""

import json
import os
import shutil
import subprocess
from functools import partial
from pathlib import Path

import command_line
import kubernetes_validate
import nbformat
import pytest
import yaml

SETTINGS = "[source]\nfrom = 'http://prometheus:9090'\n[days]\ntime_zone = 'Europe/Berlin'\n"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """A command line in a folder with an awkward name: its exit code, stdout and stderr."""
    folder = tmp_path / "50% done"
    folder.mkdir()
    (folder / "vllm-capacity.toml").write_text(SETTINGS)
    monkeypatch.chdir(folder)

    return partial(command_line.run, monkeypatch, capsys)


def with_programs(folder: Path, monkeypatch, **programs: str) -> Path:
    """Programs of these names, as shell scripts, before all others."""
    found = folder / "bin"
    found.mkdir()
    for name, body in programs.items():
        (found / name).write_text(f"#!/bin/sh\n{body}\n")
        (found / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{found}:{os.environ['PATH']}")
    return found


def test_the_cron_line_is_a_command_in_the_folder_of_the_settings(run):
    code, line, _ = run("schedule", "cron", "--at", "23:05")
    assert (code, line.split()[:5]) == (0, ["5", "23", "*", "*", "*"])
    command = line.split(maxsplit=5)[5].replace("\\%", "%")  # as cron hands it over
    shown = subprocess.run(
        [
            "/bin/sh",
            "-c",
            command.replace("/vllm-capacity report", "/python -c 1").replace(
                ">/dev/null", "&& pwd"
            ),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.strip() == str(Path.cwd())


def test_a_crontab_keeps_its_other_lines_and_has_ours_once(run, tmp_path, monkeypatch):
    table = tmp_path / "table"
    table.write_text("1 2 * * * other\n")
    body = f'if [ "$1" = -l ]; then cat {table}; else cat > {table}.new; mv {table}.new {table}; fi'
    with_programs(tmp_path, monkeypatch, crontab=body)
    for at in ("06:00", "07:30"):
        assert run("schedule", "cron", "--install", "--at", at)[0] == 0
    lines = table.read_text().splitlines()
    assert [line.split()[:2] for line in lines] == [["1", "2"], ["30", "7"]]


def test_systemd_finds_nothing_wrong_in_the_units(run, tmp_path, monkeypatch):
    verify = shutil.which("systemd-analyze")
    if verify is None:
        assert not os.environ.get("CI"), "systemd-analyze belongs to Debian's package systemd"
        pytest.skip("no systemd-analyze here")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    with_programs(tmp_path, monkeypatch, systemctl=f'echo "$@" >> {tmp_path}/asked')
    assert run("schedule", "systemd", "--install")[0] == 0
    units = sorted((tmp_path / "config/systemd/user").iterdir())
    assert [unit.suffix for unit in units] == [".service", ".timer"]
    done = subprocess.run([verify, "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "asked").read_text().splitlines() == [
        "--user daemon-reload",
        "--user enable --now vllm-capacity-report.timer",
    ]


def objects(run, *words):
    code, text, _ = run("schedule", "kubernetes", *words)
    assert code == 0
    return {each["kind"]: each for each in yaml.safe_load_all(text)}


@pytest.mark.parametrize("kind", ["Secret", "ConfigMap", "PersistentVolumeClaim", "CronJob"])
@pytest.mark.parametrize("release", ["1.31", "1.34"])
def test_kubernetes_schemas_allow_every_object(run, kind, release):
    kubernetes_validate.validate(objects(run)[kind], release, strict=True)


def test_the_cron_job_runs_by_the_settings_it_is_given(run):
    Path("vllm-capacity.toml").write_text(SETTINGS + "[price]\nfleet = 'fleet.csv'\n")
    Path("fleet.csv").write_text("instance,usd_per_hour\n*,7\n")
    found = objects(run, "--image", "registry/x:1", "--at", "04:30")
    assert set(found["ConfigMap"]["data"]) == {"vllm-capacity.toml", "fleet.csv"}
    spec = found["CronJob"]["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("30 4 * * *", "Europe/Berlin")
    (container,) = spec["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry/x:1"
    assert container["args"][-2:] == ["--fleet", "/settings/fleet.csv"]


def test_alerts_follow_the_report_if_settings_name_recipients(run, tmp_path, monkeypatch):
    Path("vllm-capacity.toml").write_text(
        SETTINGS + "[alerts]\nnotify = ['json://h/${HOOK}']\nalertmanager = 'http://am:9093'\n"
    )
    _, line, _ = run("schedule", "cron")
    assert [each.split()[1] for each in line.split(" && ")[1:]] == ["report", "alerts"]
    _, units, _ = run("schedule", "systemd")
    assert units.count("ExecStart=") == 2
    assert "SuccessExitStatus=1" in units
    notebook = json.loads(run("schedule", "jupyter")[1])["notebook"]
    assert [cell["id"] for cell in notebook["cells"]] == ["parameters", "report", "alerts"]
    found = objects(run)
    assert {"HOOK", "ALERTMANAGER_TOKEN"} <= set(found["Secret"]["stringData"])
    kubernetes_validate.validate(found["CronJob"], "1.34", strict=True)
    (container,) = found["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    for report, alerts, ends in ((0, 0, 0), (0, 1, 0), (3, 0, 3), (2, 0, 2), (0, 3, 1)):
        body = f'case "$*" in *alerts*) exit {alerts};; *) exit {report};; esac'
        folder = tmp_path / f"{report}{alerts}"
        folder.mkdir()
        with_programs(folder, monkeypatch, **{"vllm-capacity": body})
        done = subprocess.run([*container["command"], *container["args"]], check=False)
        assert done.returncode == ends


@pytest.mark.parametrize(
    ("image", "shown"),
    [
        ("registry:5000/x:1", [{"name": "registry:5000/x", "newTag": "1"}]),
        ("registry:5000/x", [{"name": "registry:5000/x"}]),
    ],
)
def test_a_base_for_kustomize_has_the_same_objects(run, image, shown):
    code, result, _ = run("schedule", "kubernetes", "--image", image, "--kustomize", "base")
    base = yaml.safe_load(Path("base/kustomization.yaml").read_text())
    assert (code, len(result.splitlines())) == (0, 5)
    assert (base["kind"], base["images"]) == ("Kustomization", shown)
    found = [yaml.safe_load(Path("base", name).read_text()) for name in base["resources"]]
    assert {each["kind"]: each for each in found} == objects(run, "--image", image)
    assert run("schedule", "kubernetes", "--kustomize", "base")[0] == 2, "nothing is overwritten"


def test_kubectl_gets_the_objects(run, tmp_path, monkeypatch):
    with_programs(tmp_path, monkeypatch, kubectl=f'cat > {tmp_path}/applied; echo "$@"')
    assert run("schedule", "kubernetes", "--install")[:2] == (0, "apply -f -\n")
    kinds = [each["kind"] for each in yaml.safe_load_all((tmp_path / "applied").read_text())]
    assert kinds == ["Secret", "ConfigMap", "PersistentVolumeClaim", "CronJob"]


def test_the_jupyter_job_has_a_valid_notebook_that_runs_the_report(run, tmp_path):
    code, out, _ = run("schedule", "jupyter", "--install", "--root", str(tmp_path))
    assert (code, len(out.splitlines())) == (0, 2)
    job = json.loads((tmp_path / "vllm-capacity-report.json").read_text())
    notebook = nbformat.read(tmp_path / job["input_uri"], as_version=4)
    nbformat.validate(notebook)
    assert job["schedule"] == "0 6 * * *"
    assert job["timezone"] == "Europe/Berlin"
    assert str(Path.cwd()) in notebook.cells[1].source


@pytest.mark.parametrize(
    ("settings", "words", "says"),
    [
        pytest.param(None, ["cron"], "Write it first: vllm-capacity init", id="no settings"),
        pytest.param("[price]\n", ["cron"], "set source.from", id="no source"),
        pytest.param("[prise]\n", ["systemd"], "did you mean price", id="settings with a fault"),
        pytest.param(SETTINGS, ["cron", "--at", "25:00"], "time of day", id="no time"),
    ],
)
def test_what_cannot_be_scheduled_is_reported_in_one_line(run, settings, words, says):
    if settings is None:
        Path("vllm-capacity.toml").unlink()
    else:
        Path("vllm-capacity.toml").write_text(settings)
    code, out, err = run("schedule", *words)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert says in err
