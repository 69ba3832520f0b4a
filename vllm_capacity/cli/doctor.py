"""`doctor`: walks the chain from vLLM to a window and names the first broken link."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Generator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import httpx
import yaml

from vllm_capacity.cli.pull import read_settings
from vllm_capacity.cli.reading import bounded, checked_url
from vllm_capacity.cli.screen import columns
from vllm_capacity.errors import InputError
from vllm_capacity.live.doctor import diagnosis
from vllm_capacity.live.finding import Finding, first_broken
from vllm_capacity.live.probes import Chain, gather
from vllm_capacity.live.stack import INGEST_SECRET, READER_PROFILE
from vllm_capacity.sources.asking import UNKEPT
from vllm_capacity.sources.wire import client

_MARKS = {"ok": "ok     ", "broken": "BROKEN ", "unknown": "unknown"}


@click.command(short_help="The first broken link from vLLM to a window, and its remedy.")
@click.option(
    "--vllm",
    multiple=True,
    default=("http://127.0.0.1:8000/metrics",),
    show_default=True,
    help="A server's /metrics; once for each replica.",
)
@click.option("--proxy", help="The proxy's address, if there is one.")
@click.option(
    "--collector",
    default="127.0.0.1",
    show_default=True,
    help="The Collector's host; `none` leaves it out.",
)
@click.option(
    "--collector-metrics-port",
    default=8888,
    show_default=True,
    help="Where it tells its own metrics.",
)
@click.option(
    "--collector-health-port", default=13133, show_default=True, help="Where it says it is well."
)
@click.option(
    "--collector-config",
    type=click.Path(path_type=Path),
    default=Path("otel-config.yaml"),
    show_default=True,
    help="Its configuration, read if it is there.",
)
@click.option(
    "--parseable",
    envvar="PARSEABLE_URL",
    help="Its URL (or PARSEABLE_URL, or the profile's); `none` leaves it out.",
)
@click.option(
    "--stream",
    envvar="PARSEABLE_STREAM",
    default="vllm_metrics",
    show_default=True,
    help="Parseable's stream of metrics.",
)
@click.option(
    "--secrets",
    type=click.Path(path_type=Path),
    default=Path("secrets"),
    show_default=True,
    help="Folder that `stack init` wrote.",
)
@click.option("--profile", type=click.Path(path_type=Path), help="The reader's settings file.")
@click.option("--window", help="A window to look at, too.")
@click.option("--usd-per-hour", type=float, help="Price of one GPU for an hour, for its cost.")
@click.option(
    "--wait",
    type=click.FloatRange(min=0),
    default=6.0,
    show_default=True,
    callback=bounded,
    help="Seconds between two looks.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON list on stdout.")
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
    wait: float,
    as_json: bool,
) -> None:
    """Walk vLLM → Collector → Parseable → window; name the first broken link and its remedy.

    Exit code 1 when one is broken. Parseable's streams are looked at with the reader's credentials:
    PARSEABLE_USER and PARSEABLE_PASSWORD, or the profile that `stack init` wrote.
    """
    settings = _settings(profile, secrets)
    has_collector = collector != "none"
    chain = Chain(
        vllm=tuple(_metrics_url(url) for url in vllm if url != "none"),
        proxy=proxy and checked_url(proxy.rstrip("/").removesuffix("/health") + "/health"),
        collector_metrics=checked_url(f"http://{collector}:{collector_metrics_port}/metrics")
        if has_collector
        else None,
        collector_health=f"http://{collector}:{collector_health_port}/" if has_collector else None,
        parseable=checked_url(parseable or settings.get("url") or "http://127.0.0.1:8080"),
        stream=stream,
    )
    with client(timeout=httpx.Timeout(20.0, connect=5.0), limits=UNKEPT) as asking:
        evidence = gather(
            asking,
            chain if parseable != "none" else _without_parseable(chain),
            clock=lambda: datetime.now(UTC),
            pause=lambda: time.sleep(wait),
            reader=_reader(settings),
            ingest_authorization=_ingest(secrets),
            collector_config=_config(collector_config),
            answer=_answer(window, usd_per_hour) if window else None,
        )
    _tell(diagnosis(evidence), as_json=as_json)


def _answer(window: str, usd_per_hour: float | None) -> dict[str, Any]:
    """The window's answer; what computes it is loaded only when it is asked for."""
    from vllm_capacity.answers import answer
    from vllm_capacity.bills import Terms
    from vllm_capacity.facts.prices import given_price
    from vllm_capacity.telemetry.window import open_window

    price = None if usd_per_hour is None else given_price(usd_per_hour)
    return answer(open_window(window), terms=Terms(usd_per_gpu_hour=price))


def _tell(findings: list[Finding], *, as_json: bool) -> None:
    broken = first_broken(findings)
    if as_json:
        click.echo(json.dumps([finding.as_dict() for finding in findings], indent=2))
    else:
        from vllm_capacity.pages.paper import Paper

        paper = Paper(columns())
        for finding in findings:
            mark = f"{_MARKS[finding.state]} {finding.link}: "
            paper.line(f"{mark}{finding.found}", indent=" " * 8)
        paper.line("")
        if broken is None:
            paper.line("No link that was looked at is broken.")
        else:
            paper.line(f"First broken link: {broken.link} ({broken.check})")
            paper.line(f"  found:  {broken.found}", indent=" " * 10)
            paper.line(f"  remedy: {broken.remedy}", indent=" " * 10)
        click.echo(paper.text, nl=False)
    if broken is not None:
        sys.exit(1)


def _metrics_url(url: str) -> str:
    """A bare host:port means its /metrics."""
    full = url if "://" in url else f"http://{url}"
    has_path = "/" in full.partition("://")[2].rstrip("/")
    return checked_url(full if has_path else f"{full.rstrip('/')}/metrics")


def _without_parseable(chain: Chain) -> Chain:
    return Chain(chain.vllm, chain.proxy, chain.collector_metrics, chain.collector_health)


def _settings(profile: Path | None, secrets: Path) -> dict[str, str]:
    shipped = secrets / READER_PROFILE
    return read_settings(os.environ, profile or (shipped if shipped.exists() else None))


class _ApiKey(httpx.Auth):
    """An API key in the place of user and password."""

    def __init__(self, key: str) -> None:
        self._key = key

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        request.headers["X-API-KEY"] = self._key
        yield request


def _reader(settings: Mapping[str, str]) -> httpx.Auth | None:
    if settings.get("api_key"):
        return _ApiKey(settings["api_key"])
    user, password = settings.get("user"), settings.get("password")
    return httpx.BasicAuth(user, password) if user and password else None


def _ingest(secrets: Path) -> str | None:
    path = secrets / INGEST_SECRET
    return path.read_text() if path.exists() else None


def _config(path: Path) -> dict[str, Any] | None:
    """The parsed configuration; None where there is no such file."""
    if not path.exists():
        return None
    try:
        parsed = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not YAML: {error}") from None
    return parsed if isinstance(parsed, dict) else {}
