"""`schedule`: the nightly report as a cron line, a systemd timer, a CronJob, or a Jupyter job.

Each runs `vllm-capacity report` with the settings file of a folder, and then `alerts` if the file
names recipients. The next run catches up on missed ones, so no schedule needs to be exact.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import click
import yaml
from msgspec import Struct

from vllm_capacity.cli.options.settings import DaySettings
from vllm_capacity.cli.options.settings_file import FILE_NAME, SettingsFile, read_settings_file
from vllm_capacity.errors import InputError

_NAME = "vllm-capacity-report"
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)")
_COMMAND_SECONDS = 60
_USER = 1000  # the image's non-root user

Objects = list[dict[str, object]]


class _Literal(str):
    """A text that YAML shows line by line."""

    __slots__ = ()


class _Dumper(yaml.SafeDumper):
    """YAML in the style that people write."""


_Dumper.add_representer(
    _Literal, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|")
)


class Job(Struct, frozen=True):
    """What to run and when: the settings file and the time of day."""

    command: Path
    settings: SettingsFile
    hour: int
    minute: int

    @property
    def folder(self) -> Path:
        """The folder it runs in: that of the settings file."""
        return self.settings.path.resolve().parent

    @property
    def zone(self) -> str:
        """The time zone of the days."""
        return str(self.settings.values.get("zone", DaySettings.zone))

    @property
    def has_alerts(self) -> bool:
        """Whether the settings name recipients of alerts."""
        return any(self.settings.values.get(name) for name in ("alertmanager", "notify"))

    @property
    def commands(self) -> list[list[str]]:
        """The command lines in order; the settings file is named unless it has the default name."""
        name = self.settings.path.name
        of = [str(self.command), *(["--settings", name] if name != FILE_NAME else [])]
        return [[*of, "report"], *([[*of, "alerts"]] if self.has_alerts else [])]


def cron_line(job: Job) -> str:
    """The line for a crontab; % is escaped, because cron reads it as a newline."""
    words = (f"{shlex.join(each)} >/dev/null" for each in job.commands)
    command = " && ".join((f"cd {shlex.quote(str(job.folder))}", *words))
    return f"{job.minute} {job.hour} * * * {command.replace('%', chr(92) + '%')}"


def systemd_units(job: Job) -> dict[str, str]:
    """A service and its timer, by file name; the timer catches up if the machine was off."""
    lines = (f"ExecStart={' '.join(map(_systemd_word, each))}" for each in job.commands)
    commands = "\n".join(lines)
    fired = "# 1: an alert fired.\nSuccessExitStatus=1\n" if job.has_alerts else ""
    folder = str(job.folder).replace("%", "%%")
    service = f"""\
[Unit]
Description=Nightly vLLM capacity report
Wants=network-online.target
After=network-online.target

[Service]
Type=oneshot
WorkingDirectory={folder}
# Credentials as NAME=value lines, mode 0600; the file may be missing.
EnvironmentFile=-%E/vllm-capacity/environment
{fired}{commands}
"""
    timer = f"""\
[Unit]
Description=Every night: vLLM capacity report

[Timer]
OnCalendar=*-*-* {job.hour:02}:{job.minute:02}:00
Persistent=true

[Install]
WantedBy=timers.target
"""
    return {f"{_NAME}.service": service, f"{_NAME}.timer": timer}


def kubernetes_objects(job: Job, *, image: str, storage: str) -> Objects:
    """The Secret to fill in, the settings, the volume for windows and pages, and the CronJob."""
    return [_secret(job), _settings_map(job), _volume(storage), _cron_job(job, image)]


def kustomization(objects: Objects, image: str) -> dict[str, object]:
    """The kustomization.yaml of a base with these objects, each in a file named by its kind."""
    name, _, tag = image.rpartition(":")
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [_file_of(each) for each in objects],
        "images": [{"name": name, "newTag": tag} if "/" not in tag and name else {"name": image}],
    }


def _file_of(each: Mapping[str, object]) -> str:
    return f"{str(each['kind']).lower()}.yaml"


def yaml_of(objects: Objects) -> str:
    """The objects as YAML documents for kubectl."""
    return str(yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def jupyter_job(job: Job) -> dict[str, object]:
    """The body of a POST to /scheduler/job_definitions; its notebook is `nightly_notebook`."""
    return {
        "name": _NAME,
        "input_filename": f"{_NAME}.ipynb",
        "input_uri": f"{_NAME}.ipynb",
        "runtime_environment_name": "python",
        "output_formats": ["ipynb", "html"],
        "schedule": f"{job.minute} {job.hour} * * *",
        "timezone": job.zone,
    }


def nightly_notebook(job: Job) -> dict[str, object]:
    """The notebook of the Jupyter job: it runs the report in the settings' folder and names pages.

    A job runs in a folder of its own, so all paths are absolute. Its parameter `last` can be set
    for one run; jupyter-scheduler takes it as Python, with its quotes.
    """
    parameters = 'last: str = ""  # days to look at, such as "7d"; empty: as the settings say'
    source = (
        "import subprocess\n\n"
        f"words = {job.commands[0]!r} + (['--last', last] if last else [])\n"
        f"ran = subprocess.run(words, cwd={str(job.folder)!r}, capture_output=True, text=True)\n"
        "print(ran.stdout, ran.stderr)\nran.check_returncode()"
    )
    cells = [_code("parameters", parameters, tags=["parameters"]), _code("report", source)]
    for words in job.commands[1:]:
        alerts = (
            f"ran = subprocess.run({words!r}, cwd={str(job.folder)!r}, capture_output=True, "
            "text=True)\nprint(ran.stdout, ran.stderr)\n"
            "assert ran.returncode in (0, 1)  # 1: an alert fired"
        )
        cells.append(_code("alerts", alerts))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def _code(name: str, source: str, *, tags: Sequence[str] = ()) -> dict[str, object]:
    return {
        "cell_type": "code",
        "id": name,
        "metadata": {"tags": list(tags)} if tags else {},
        "source": source,
        "outputs": [],
        "execution_count": None,
    }


def _secret(job: Job) -> dict[str, object]:
    of = "PARSEABLE" if job.settings.values.get("stream") else "PROMETHEUS"
    notify = job.settings.values.get("notify")
    used = re.findall(r"\$\{(\w+)\}", " ".join(notify)) if isinstance(notify, tuple) else []
    if job.settings.values.get("alertmanager"):
        used.append("ALERTMANAGER_TOKEN")
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": _NAME},
        "stringData": dict.fromkeys((f"{of}_USER", f"{of}_PASSWORD", *used), ""),
    }


def _settings_map(job: Job) -> dict[str, object]:
    files = [job.settings.path, *_fleet(job)]
    data = {path.name: _Literal(path.read_text(encoding="utf-8")) for path in files}
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": _NAME},
        "data": data,
    }


def _fleet(job: Job) -> list[Path]:
    fleet = job.settings.values.get("fleet")
    return [fleet] if isinstance(fleet, Path) else []


def _volume(storage: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": _NAME},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": storage}},
        },
    }


def _cron_job(job: Job, image: str) -> dict[str, object]:
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": {"name": _NAME},
        "spec": {
            "schedule": f"{job.minute} {job.hour} * * *",
            "timeZone": "Etc/UTC" if job.zone == "UTC" else job.zone,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": 3600,
            "jobTemplate": {"spec": _attempts(job, image)},
        },
    }


def _attempts(job: Job, image: str) -> dict[str, object]:
    """A job that retries an unavailable source, but not missing data or bad settings (2)."""
    gives_up = {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}
    return {
        "backoffLimit": 2,
        "podFailurePolicy": {"rules": [gives_up]},
        "template": {"spec": _pod(job, image)},
    }


def _pod(job: Job, image: str) -> dict[str, object]:
    fleet = [word for path in _fleet(job) for word in ("--fleet", f"/settings/{path.name}")]
    of = ["vllm-capacity", "--settings", f"/settings/{job.settings.path.name}"]
    days = ["--windows", "/data/windows"]
    command, arguments = [*of, "report"], [*days, "--out", "/data/reports", *fleet]
    if job.has_alerts:
        report = shlex.join([*command, *arguments])
        alerts = shlex.join([*of, "alerts", *days, "--sent", "/data/sent.json", *fleet])
        # A shell for two commands; a fired alert (1) does not fail the job.
        command = ["/bin/sh", "-c"]
        arguments = [f"{report} || exit; {alerts}; [ $? -le 1 ]"]
    container = {
        "name": "report",
        "image": image,
        "command": command,
        "args": arguments,
        "workingDir": "/data",
        "env": [{"name": "HOME", "value": "/tmp"}],
        "envFrom": [{"secretRef": {"name": _NAME}}],
        "resources": {"requests": {"cpu": "1", "memory": "2Gi"}, "limits": {"memory": "4Gi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "data", "mountPath": "/data"},
            {"name": "settings", "mountPath": "/settings", "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "data", "persistentVolumeClaim": {"claimName": _NAME}},
            {"name": "settings", "configMap": {"name": _NAME}},
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def _systemd_word(word: str) -> str:
    """A word of ExecStart, quoted if it has spaces; % and $ are special there and are escaped."""
    plain = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{plain}"' if re.search(r"[\s;'\"\\]", plain) else plain


@click.group(short_help="Schedule the nightly report: cron, systemd, Kubernetes, Jupyter.")
def schedule() -> None:
    """Run `vllm-capacity report` every night, then alerts if the settings name recipients.

    Each command prints a job; --install installs it for the current user. Write the settings file
    first: vllm-capacity init.
    """


def _scheduled(command: Callable[..., None]) -> Callable[..., None]:
    """The common options of all schedules: `--at`, `--install`, and the settings file."""
    at = click.option("--at", default="06:00", show_default=True, help="Time of day, HH:MM.")
    install = click.option("--install", is_flag=True, help="Install it for the current user.")
    return click.pass_obj(at(install(command)))


@schedule.command(short_help="Print a crontab line.")
@_scheduled
def cron(path: Path, at: str, install: bool) -> None:
    """Print a crontab line; cron sends a mail only if a run fails."""
    line = cron_line(_job(path, at))
    if not install:
        click.echo(line)
        return
    before = _ran(["crontab", "-l"], or_nothing=True).splitlines()
    others = [each for each in before if _schedule_less(each) != _schedule_less(line)]
    _ran(["crontab", "-"], "\n".join([*others, line, ""]))
    click.echo(f"Installed for crontab: {line}")


@schedule.command(short_help="Print a systemd service and timer.")
@_scheduled
def systemd(path: Path, at: str, install: bool) -> None:
    """Print a systemd user service and its timer; they run while the user's manager runs."""
    units = systemd_units(_job(path, at))
    if not install:
        for name, text in units.items():
            click.echo(f"# {name}\n{text}")
        return
    root = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    folder = Path(root) / "systemd" / "user"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in units.items():
        (folder / name).write_text(text)
    _ran(["systemctl", "--user", "daemon-reload"])
    _ran(["systemctl", "--user", "enable", "--now", f"{_NAME}.timer"])
    click.echo(
        f"Installed in {folder}. It runs while you are logged in; to run it always: "
        "loginctl enable-linger"
    )


@schedule.command(short_help="Print a CronJob with Secret, settings and volume.")
@_scheduled
@click.option(
    "--image", default=f"vllm-capacity:{version('vllm-capacity')}", show_default=True, help="Image."
)
@click.option(
    "--storage", default="20Gi", show_default=True, help="Volume for windows and reports."
)
@click.option(
    "--kustomize",
    "base",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write a kustomize base into this new folder.",
)
def kubernetes(
    path: Path, at: str, install: bool, image: str, storage: str, base: Path | None
) -> None:
    """Print a CronJob with Secret, settings (a ConfigMap) and volume, as YAML for kubectl.

    Fill in the Secret if the source needs credentials. --install: run kubectl apply in its current
    context and namespace. --kustomize: write a base, for overlays that set namespace, image and
    Secret.
    """
    found = kubernetes_objects(_job(path, at), image=image, storage=storage)
    if base is not None:
        for place in _written_base(base, found, image):
            click.echo(place)
        return
    text = yaml_of(found)
    click.echo(_ran(["kubectl", "apply", "-f", "-"], text) if install else text, nl=False)


def _written_base(folder: Path, objects: Objects, image: str) -> list[Path]:
    """Write a kustomize base into a new or empty folder, and return the files written."""
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} is not empty. Name a new folder for the base.")
    folder.mkdir(parents=True, exist_ok=True)
    files = {_file_of(each): each for each in objects}
    files["kustomization.yaml"] = kustomization(objects, image)
    for name, each in files.items():
        (folder / name).write_text(yaml_of([each]))
    return [folder / name for name in files]


@schedule.command(short_help="Print a jupyter-scheduler job.")
@_scheduled
@click.option(
    "--root",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="JupyterLab's root folder, for --install. [default: here]",
)
def jupyter(path: Path, at: str, install: bool, root: Path) -> None:
    """Print a job definition for jupyter-scheduler and its notebook, as JSON.

    --install writes both into JupyterLab's root folder. POST the definition to the server's
    /scheduler/job_definitions.
    """
    job = _job(path, at)
    if not install:
        both = {"job_definition": jupyter_job(job), "notebook": nightly_notebook(job)}
        click.echo(json.dumps(both, indent=2))
        return
    for name, body in ((".ipynb", nightly_notebook(job)), (".json", jupyter_job(job))):
        (root / f"{_NAME}{name}").write_text(json.dumps(body, indent=1) + "\n")
        click.echo(root / f"{_NAME}{name}")


def _job(path: Path, at: str) -> Job:
    """The job of a settings file; InputError if that is missing or invalid."""
    if not path.is_file():
        raise InputError(
            f"There is no settings file {path}, which says what to report. Write it first: "
            "vllm-capacity init --from http://prometheus:9090."
        )
    found = read_settings_file(path)
    found.require_sound()
    if "origin" not in found.values:
        raise InputError(f"{path} does not say where telemetry comes from: set source.from.")
    time = _TIME.fullmatch(at)
    if time is None:
        raise InputError(f"Cannot read --at {at!r} as a time of day; try 06:00.")
    command = Path(sys.executable).with_name("vllm-capacity")
    return Job(command, found, int(time[1]), int(time[2]))


def _schedule_less(line: str) -> str:
    """A crontab line without its five time fields."""
    return "".join(line.split(maxsplit=5)[5:])


def _ran(command: list[str], text: str | None = None, *, or_nothing: bool = False) -> str:
    """A program's output; InputError if it is missing or fails."""
    if shutil.which(command[0]) is None:
        raise InputError(
            f"{command[0]} is not installed here; without --install, the job is printed."
        )
    done = subprocess.run(
        command, input=text, capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
    )
    if done.returncode and not or_nothing:
        raise InputError(f"{shlex.join(command)} failed: {done.stderr.strip() or done.stdout}")
    return "" if done.returncode else done.stdout
