"""compose-otel.yml and the Dockerfile: read by a real compose parser, then its promises checked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "compose-otel.yml"
SETTINGS = {
    "PARSEABLE_ROOT_USER": "root-of-tests",
    "PARSEABLE_ROOT_PASSWORD": "a-password-of-tests",
    "VLLM_TARGETS": "[vllm-a:8000, vllm-b:8000]",
}
SERVICES = ("prepare", "parseable", "collector", "reporter", "proxy")


def composed(settings: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What podman-compose makes of the file, with nothing but these settings in the environment."""
    return subprocess.run(
        [
            *(Path(sys.executable).with_name("podman-compose"), "--in-pod=0", "-f", COMPOSE),
            *("--profile", "reporter", "--profile", "proxy", "--dry-run", "config"),
        ],
        env={"PATH": os.environ["PATH"], **settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    outcome = composed(SETTINGS)
    assert outcome.returncode == 0, outcome.stderr
    parsed = yaml.safe_load(outcome.stdout)
    assert isinstance(parsed, dict)
    return parsed


@pytest.fixture(scope="module")
def services(project: dict[str, Any]) -> dict[str, Any]:
    services = project["services"]
    assert isinstance(services, dict)
    return services


def test_the_compose_services(services: dict[str, Any]) -> None:
    assert set(services) == set(SERVICES)


@pytest.mark.parametrize("name", SETTINGS)
def test_what_must_be_set_has_no_default(name: str) -> None:
    outcome = composed({key: value for key, value in SETTINGS.items() if key != name})
    assert outcome.returncode != 0
    assert f"set {name} in .env" in outcome.stderr


def test_no_secret_is_written_in_the_file() -> None:
    text = COMPOSE.read_text()
    assigned = re.findall(r"^\s*(\w*(?:PASSWORD|AUTHORIZATION|KEY|TOKEN)\w*): *(.+)$", text, re.M)
    assert assigned
    assert [v for _, v in assigned if not re.match(r"\$\{\w+:\?|\$\$\{file:/run/secrets/", v)] == []


def test_secrets_are_files(project: dict[str, Any], services: dict[str, Any]) -> None:
    assert all(set(secret) == {"file"} for secret in project["secrets"].values())
    assert {n: s["secrets"] for n, s in services.items() if "secrets" in s} == {
        "collector": ["ingest_authorization"],
        "reporter": ["reader_password"],
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_hardened(services: dict[str, Any], name: str) -> None:
    service = services[name]
    assert service["user"].partition(":")[0] not in ("0", "root")
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert "privileged" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert {"mem_limit", "cpus", "pids_limit"} <= set(service)


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_published_on_loopback_only(services: dict[str, Any], name: str) -> None:
    ports = services[name].get("ports", [])
    assert [p for p in ports if not p.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", SERVICES)
def test_images_are_pinned(services: dict[str, Any], name: str) -> None:
    assert re.search(r":v?\d+\.\d+\.\d+$", services[name]["image"])


def test_parseable_is_new_enough(services: dict[str, Any]) -> None:
    version = services["parseable"]["image"].rpartition(":v")[2]
    assert tuple(map(int, version.split("."))) >= (2, 9, 2)


def test_parseable_keeps_its_data_and_its_staging(
    project: dict[str, Any], services: dict[str, Any]
) -> None:
    parseable = services["parseable"]
    mounted = dict(reversed(volume.split(":")) for volume in parseable["volumes"])
    for setting in ("P_FS_DIR", "P_STAGING_DIR"):
        assert mounted[parseable["environment"][setting]] in project["volumes"]
    assert len(set(mounted.values())) == 2


def test_the_collectors_queue_is_on_a_volume(
    project: dict[str, Any], services: dict[str, Any]
) -> None:
    collector = services["collector"]
    mounted = dict(reversed(v.split(":")) for v in collector["volumes"] if not v.endswith(":ro"))
    assert mounted[collector["environment"]["OTELCOL_STORAGE"]] in project["volumes"]


@pytest.mark.parametrize("name", ["parseable", "collector", "reporter", "proxy"])
def test_a_systemd_service_has_a_minute_to_stop(services: dict[str, Any], name: str) -> None:
    assert int(services[name]["stop_grace_period"].removesuffix("s")) >= 60


def test_parseable_calls_nobody(services: dict[str, Any]) -> None:
    environment = services["parseable"]["environment"]
    assert environment["P_CHECK_UPDATE"] == "false"
    assert environment["P_SEND_ANONYMOUS_USAGE_DATA"] == "false"


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        pytest.param({}, [], id="no price and no targets"),
        pytest.param(
            {"STACK_PRICE": "A100 of RunPod", "STACK_SLO_TTFT": "2"},
            ["--price", "A100 of RunPod", "--slo-ttft", "2"],
            id="a price row and a target",
        ),
        pytest.param({"STACK_USD_PER_HOUR": "1.64"}, ["--usd-per-hour", "1.64"], id="a price"),
    ],
)
def test_the_reporter_makes_pages_of_days_under_what_is_set(
    tmp_path: Path, settings: dict[str, str], options: list[str]
) -> None:
    outcome = composed({**SETTINGS, **settings})
    service = yaml.safe_load(outcome.stdout)["services"]["reporter"]
    script = service["command"][2].replace("$$", "$")
    once = script.split("do\n", 1)[1].split("sleep")[0].replace("/run/secrets", str(tmp_path))
    (tmp_path / "reader_password").write_text("secret")
    (tmp_path / "vllm-capacity").write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    (tmp_path / "vllm-capacity").chmod(0o755)
    shown = subprocess.run(
        ["/bin/sh", "-c", once],
        env={**service["environment"], "PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert shown[:2] == ["report", "--from"]
    assert {"--today", "--keep", "30d", "/stack/windows"} <= set(shown)
    assert shown[shown.index("/stack/reports") + 1 :] == options


def test_health_is_probed_from_outside_the_images_without_a_shell(services: dict[str, Any]) -> None:
    assert "healthcheck" not in services["parseable"]
    assert "healthcheck" not in services["collector"]
    probe = services["reporter"]["healthcheck"]["test"]
    assert probe[:4] == ["CMD", "vllm-capacity", "stack", "healthy"]
    assert probe[4:] == ["http://parseable:8000/api/v1/readiness", "http://collector:13133/"]


def test_the_collector_reads_the_projects_configuration(services: dict[str, Any]) -> None:
    mounts = [v for v in services["collector"]["volumes"] if v.startswith("./otel-config.yaml:")]
    [path] = [mount.split(":")[1] for mount in mounts]
    assert services["collector"]["command"] == [f"--config={path}"]


def test_the_tests_build_the_version_that_is_deployed(services: dict[str, Any]) -> None:
    deployed = services["collector"]["image"].rpartition(":")[2]
    builder = yaml.safe_load((ROOT / "tests/otelcol/builder.yaml").read_text())
    assert builder["dist"]["version"] == deployed
    assert f"\nversion={deployed}\n" in (ROOT / "tests/otelcol/build.sh").read_text()


def test_every_setting_given_to_the_collector_is_one_it_reads(services: dict[str, Any]) -> None:
    read = set(re.findall(r"\$\{env:(\w+)", (ROOT / "otel-config.yaml").read_text()))
    given = set(services["collector"]["environment"]) - {"GOMEMLIMIT"}
    assert given <= read


def test_new_volumes_get_the_running_user_as_owner(services: dict[str, Any]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    folders = [volume.split(":")[1] for volume in services["prepare"]["volumes"]]
    assert f"mkdir -p {' '.join(folders)}" in dockerfile
    assert services["prepare"]["command"][3:] == folders


def test_the_dockerfile_is_pinned_and_runs_without_root() -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    assert all(re.fullmatch(r"python:3\.11\.\d+-slim-\w+", base) for base in bases)
    assert [line for line in lines if line.startswith("USER ")] == ["USER $UID:$GID"]
    assert any("--require-hashes -r requirements-image.lock" in line for line in lines)
