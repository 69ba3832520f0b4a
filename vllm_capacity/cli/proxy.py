"""`proxy`: vLLM's /metrics with underscores for colons."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from types import FrameType

import click
import httpx

from vllm_capacity.cli.options import FILE, bounded, listen_address
from vllm_capacity.errors import InputError
from vllm_capacity.live.access import (
    METRICS,
    METRICS_SETTINGS,
    checked_url,
    client,
    read_settings,
    trusting,
)
from vllm_capacity.live.proxy import ProxyServer, Upstream


@click.command(short_help="Serve vLLM's metrics with underscores for colons.")
@click.option(
    "--upstream",
    envvar="VLLM_METRICS_URL",
    required=True,
    help="vLLM's /metrics, a URL; or set VLLM_METRICS_URL.",
)
@click.option("--listen", default="127.0.0.1:9090", show_default=True, help="HOST:PORT.")
@click.option(
    "--ca",
    type=FILE,
    help="Certificates to trust instead of the system's. TLS is always verified.",
)
@click.option(
    "--timeout",
    "patience",
    type=click.FloatRange(min=0, min_open=True),
    default=10.0,
    callback=bounded,
    show_default=True,
    help="Timeout for the upstream's whole answer, seconds.",
)
def proxy(upstream: str, listen: str, ca: Path | None, patience: float) -> None:
    """Serve vLLM's metrics with `_` for `:`, types kept, for tools that cannot read colons.

    The Collector, Parseable and Prometheus need no proxy. /metrics, /health, /proxy/metrics.
    Credentials for vLLM's /metrics come from VLLM_METRICS_USER and VLLM_METRICS_PASSWORD, or
    VLLM_METRICS_TOKEN.
    """
    checked_url(upstream, variables=METRICS)
    settings = read_settings(os.environ, None, prefix=METRICS, names=METRICS_SETTINGS)
    limits = httpx.Limits(max_connections=64, max_keepalive_connections=8)
    timeout = httpx.Timeout(patience, connect=min(patience, 5.0), pool=patience)
    with client(settings, verify=trusting(ca), timeout=timeout, limits=limits) as session:
        source = Upstream(session, upstream)
        try:
            server = ProxyServer(listen_address(listen), source)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or "there is no such host"
            raise InputError(f"Cannot listen on {listen}: {why}.") from None
        signal.signal(signal.SIGTERM, _interrupt)
        with server:
            host, port = server.server_address[:2]
            click.echo(f"http://{host!s}:{port}/metrics serves {source.address}", err=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                click.echo("stopped", err=True)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    """Containers are stopped with SIGTERM; end as with Ctrl-C."""
    raise KeyboardInterrupt
