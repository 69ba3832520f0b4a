"""`fit`: the saturation of a server from a table of loads, without any telemetry."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import polars as pl
from msgspec.structs import asdict

from vllm_capacity.cli.options import FILE, columns
from vllm_capacity.errors import InputError
from vllm_capacity.render.terminal import at_text, fit_text, next_text
from vllm_capacity.sources.load_test_commands import TOOLS, Workload, load_test_command
from vllm_capacity.sources.loadtests import read_loads
from vllm_capacity.verdicts.saturation.at_load import AtLoad, fit_at
from vllm_capacity.verdicts.saturation.load_test import fit_points
from vllm_capacity.verdicts.saturation.next_load import NextLoad, next_loads

_TOKENS = click.IntRange(1, 10**7)
_DEFAULT = Workload()


@click.command(short_help="Estimate capacity from load tests, measured or extrapolated.")
@click.argument("points", type=FILE, nargs=-1, required=True)
@click.option(
    "--at",
    "at",
    type=float,
    multiple=True,
    help="Also estimate throughput and latency at this concurrency; repeatable.",
)
@click.option(
    "--next",
    "is_next",
    is_flag=True,
    help="Also suggest the next loads to test, with the commands.",
)
@click.option(
    "--most-clients",
    type=click.FloatRange(1),
    default=None,
    help="With --next: maximum number of clients to test.",
)
@click.option(
    "--max-num-seqs",
    type=click.FloatRange(1),
    default=None,
    help="The server's max_num_seqs, if the table does not have it.",
)
@click.option(
    "--tool",
    type=click.Choice(TOOLS),
    default=TOOLS[0],
    show_default=True,
    help="With --next: load-test tool.",
)
@click.option(
    "--model", default=_DEFAULT.model, show_default=True, help="With --next: the model's name."
)
@click.option(
    "--url", default=_DEFAULT.url, show_default=True, help="With --next: the server's URL."
)
@click.option(
    "--input-tokens",
    type=_TOKENS,
    default=_DEFAULT.input_tokens,
    show_default=True,
    help="With --next: prompt tokens per request.",
)
@click.option(
    "--output-tokens",
    type=_TOKENS,
    default=_DEFAULT.output_tokens,
    show_default=True,
    help="With --next: output tokens per request.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the saturation object as JSON.")
def fit(
    points: tuple[Path, ...],
    at: tuple[float, ...],
    is_next: bool,
    most_clients: float | None,
    max_num_seqs: float | None,
    tool: str,
    as_json: bool,
    **workload: Any,  # noqa: ANN401
) -> None:
    """Fit POINTS, a table of loads, and print the measured or extrapolated capacity.

    POINTS is a CSV, or JSON results of guidellm, `vllm bench serve`, `vllm bench sweep`, aiperf or
    inference-perf, or a folder of them; several files are combined into one table.

    Columns: running_requests (or clients) and output_tokens_per_second; used if there:
    kv_cache_ratio, waiting_requests, requests_per_second, offered_requests_per_second,
    max_num_seqs, clients. A row that waits, or serves less than was offered, is at the limit. With
    --at also ttft_p95_seconds and itl_p95_seconds. What the
    loads do not show is printed as not known, with the load that would be needed: no error.
    """
    loads = _with_limit(read_loads(*points), max_num_seqs)
    found = fit_points(loads)
    named = [fit_at(loads, clients) for clients in at]
    proposed = next_loads(loads, most_clients=most_clients) if is_next else None
    asked = Workload(**workload)
    if as_json:
        result = found.as_dict() | _further(named, proposed, tool, asked)
        click.echo(json.dumps(result, allow_nan=False))
        return
    width = columns()
    click.echo(fit_text(found, width=width), nl=False)
    for each in named:
        click.echo("\n" + at_text(each, width=width), nl=False)
    if proposed is not None:
        lines = [load_test_command(tool, each.clients, asked) for each in proposed]
        click.echo("\n" + next_text(proposed, lines, width=width), nl=False)


def _with_limit(loads: pl.DataFrame, max_num_seqs: float | None) -> pl.DataFrame:
    if max_num_seqs is None:
        return loads
    if "max_num_seqs" in loads.columns and loads["max_num_seqs"].is_not_null().any():
        raise InputError("The loads already have max_num_seqs; remove --max-num-seqs.")
    return loads.with_columns(max_num_seqs=pl.lit(max_num_seqs))


def _further(
    named: list[AtLoad], proposed: tuple[NextLoad, ...] | None, tool: str, asked: Workload
) -> dict[str, Any]:
    """The results requested besides the saturation; empty without --at and --next."""
    further: dict[str, Any] = {}
    if named:
        further["at"] = [each.as_dict() for each in named]
    if proposed is not None:
        further["next"] = [
            asdict(each) | {"command": load_test_command(tool, each.clients, asked)}
            for each in proposed
        ]
    return further
