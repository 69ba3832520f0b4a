"""`doctor`: walks the chain from vLLM to a window and names the first broken link."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx
import yaml

from vllm_capacity.answer import Answer
from vllm_capacity.cli.options import FILE, bounded, columns, stream_name
from vllm_capacity.errors import InputError
from vllm_capacity.live.access import (
    METRICS,
    METRICS_SETTINGS,
    auth_of,
    checked_url,
    client,
    metrics_url,
    read_settings,
)
from vllm_capacity.live.checks_flow import longest_wait_seconds
from vllm_capacity.live.doctor import diagnosis
from vllm_capacity.live.probes import Chain, CheckResult, first_broken, gather
from vllm_capacity.live.stack import INGEST_SECRET, READER_PROFILE, read_secret
from vllm_capacity.sources.http import NO_KEEPALIVE, without_credentials

_URL = "http://127.0.0.1:8080"  # where compose-otel.yml publishes Parseable
_HOST = re.compile(r"[\w.-]+|\[[0-9a-fA-F:.]+\]")
_MARKS = {"ok": "ok     ", "broken": "BROKEN ", "unknown": "unknown"}


@click.command(short_help="Find the first broken link from vLLM to a window, and its fix.")
@click.option(
    "--vllm",
    multiple=True,
    default=("http://127.0.0.1:8000/metrics",),
    show_default=True,
    help="URL of vLLM's /metrics; repeat for each replica.",
)
@click.option("--proxy", help="Address of the proxy, if any: HOST:PORT or a URL.")
@click.option(
    "--collector",
    default="127.0.0.1",
    show_default=True,
    help="The Collector's host; `none` to skip it.",
)
@click.option(
    "--collector-metrics-port",
    default=8888,
    show_default=True,
    help="Port of the Collector's own metrics.",
)
@click.option(
    "--collector-health-port",
    default=13133,
    show_default=True,
    help="Port of the Collector's health check.",
)
@click.option(
    "--collector-config",
    type=FILE,
    default=Path("otel-config.yaml"),
    show_default=True,
    help="The Collector's configuration, read if it exists.",
)
@click.option(
    "--parseable",
    envvar="PARSEABLE_URL",
    help="Parseable's URL (or PARSEABLE_URL, or the profile's); `none` to skip it.",
)
@click.option(
    "--stream",
    envvar="PARSEABLE_STREAM",
    default="vllm_metrics",
    show_default=True,
    callback=stream_name,
    help="Parseable's stream of metrics.",
)
@click.option(
    "--secrets",
    type=click.Path(path_type=Path),
    default=Path("secrets"),
    show_default=True,
    help="Folder with the secrets that `stack init` wrote.",
)
@click.option("--profile", type=FILE, help="File with the reader's credentials.")
@click.option("--window", help="Also check this window.")
@click.option(
    "--usd-per-hour",
    type=float,
    callback=bounded,
    help="Price per GPU-hour, for the window's cost.",
)
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    callback=bounded,
    help="Seconds between two readings; longer than the Collector's scrape and export intervals.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list.")
def doctor(
    vllm: tuple[str, ...],
    proxy: str | None,
    collector: str,
    collector_metrics_port: int,
    collector_health_port: int,
    collector_config: Path,
    parseable: str | None,
    stream: str,
    secrets: Path,
    profile: Path | None,
    window: str | None,
    usd_per_hour: float | None,
    wait: float | None,
    as_json: bool,
) -> None:
    """Check vLLM → Collector → Parseable → window, and name the first broken link and its fix.

    Exit code 1 if one is broken. Parseable's streams are read with the reader's credentials:
    PARSEABLE_USER and PARSEABLE_PASSWORD, or the profile that `stack init` wrote.
    """
    settings = _settings(profile, secrets)
    metrics = read_settings(os.environ, None, prefix=METRICS, names=METRICS_SETTINGS)
    has_collector = collector != "none"
    store = parseable or settings.get("url") or _URL
    chain = Chain(
        vllm=tuple(metrics_url(url) for url in vllm if url != "none"),
        proxy=_health_url(proxy) if proxy is not None and proxy != "none" else None,
        collector_metrics=_collector_url(collector, collector_metrics_port, "/metrics"),
        collector_health=_collector_url(collector, collector_health_port, "/"),
        parseable=checked_url(store, variables="PARSEABLE") if store != "none" else None,
        stream=stream,
    )
    config = _config(collector_config) if has_collector else None
    pause = longest_wait_seconds(config or {}, os.environ) if wait is None else wait
    with client(timeout=httpx.Timeout(20.0, connect=5.0), limits=NO_KEEPALIVE) as session:
        evidence = gather(
            session,
            chain,
            clock=lambda: datetime.now(UTC),
            pause=lambda: time.sleep(pause),
            metrics=auth_of(metrics),
            reader=auth_of(settings),
            ingest_authorization=_ingest(secrets) if has_collector else None,
            collector_config=config,
            answer=_answer(window, usd_per_hour) if window else None,
        )
    _print_findings(diagnosis(evidence), as_json=as_json)


def _answer(window: str, usd_per_hour: float | None) -> Answer:
    """The window's answer; the code that computes it is loaded only when needed."""
    from vllm_capacity.analysis import Analysis
    from vllm_capacity.assumptions import Assumptions, pricing
    from vllm_capacity.telemetry.window import open_window

    assumed = Assumptions(pricing(usd_per_hour))
    return Analysis.of(open_window(window), assumptions=assumed).answer


def _print_findings(findings: list[CheckResult], *, as_json: bool) -> None:
    broken = first_broken(findings)
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        click.echo(_report(findings, broken), nl=False)
    if broken is not None:
        sys.exit(1)


def _report(findings: list[CheckResult], broken: CheckResult | None) -> str:
    """The finding of each link, then the first broken one and its remedy."""
    from vllm_capacity.render.tables import wrapped

    width = columns()
    lines = [
        wrapped(f"{_MARKS[each.state]} {each.link}: {each.found}", width, indent=8)
        for each in findings
    ]
    if broken is None:
        return "".join([*lines, "\n", "No broken link was found.\n"])
    remedy = [
        wrapped(f"First broken link: {broken.link} ({broken.check})", width),
        wrapped(f"  found:  {broken.found}", width, indent=10),
        wrapped(f"  remedy: {broken.remedy}", width, indent=10),
    ]
    return "".join([*lines, "\n", *remedy])


def _collector_url(host: str, port: int, path: str) -> str | None:
    """A page of the Collector; None to skip it."""
    if host == "none":
        return None
    if not _HOST.fullmatch(host):
        raise InputError(
            f"{without_credentials(host)!r} is not a host: give only the Collector's name or "
            "address, such as 127.0.0.1; its ports have their own options."
        )
    return checked_url(f"http://{host}:{port}{path}")


def _health_url(proxy: str) -> str:
    """The proxy's /health, whichever of its pages was given."""
    bare = metrics_url(proxy).rstrip("/").removesuffix("/health")
    return f"{bare.removesuffix('/metrics').removesuffix('/proxy')}/health"


def _settings(profile: Path | None, secrets: Path) -> dict[str, str]:
    shipped = secrets / READER_PROFILE
    return read_settings(os.environ, profile or (shipped if shipped.exists() else None))


def _ingest(secrets: Path) -> str | None:
    path = secrets / INGEST_SECRET
    return read_secret(path) if path.exists() else None


def _config(path: Path) -> dict[str, Any] | None:
    """The parsed configuration; None if the file does not exist."""
    if not path.exists():
        return None
    try:
        parsed = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, RecursionError, ValueError, OverflowError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    return parsed if isinstance(parsed, dict) else {}
