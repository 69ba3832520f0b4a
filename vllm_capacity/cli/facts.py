"""`facts`: searchable tables of GPUs, models, prices and metrics, with the source of each row."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

import click

from vllm_capacity.cli.options import columns
from vllm_capacity.facts.catalog import CATALOGS, FactRow, find_rows, own_tables
from vllm_capacity.render.facts import overview_text, row_text, rows_text

_Verb = TypeVar("_Verb", bound=Callable[..., None])


def _shown(verb: _Verb) -> _Verb:
    """Options that select rows and their format: the words, --full, --json."""
    words = click.argument("words", nargs=-1)
    full = click.option(
        "--full", is_flag=True, help="Show every value of each row, with its source."
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON.")
    return words(full(as_json(verb)))


@click.command(short_help="List known GPUs, models, prices and metrics, with sources.")
@click.argument("table", type=click.Choice(tuple(CATALOGS)), required=False)
@_shown
def facts(table: str | None, words: tuple[str, ...], full: bool, as_json: bool) -> None:
    """List TABLE, or its rows that match all WORDS; a single match is shown in full.

    Your own rows come first, in files named gpu_specs.csv, llms.csv, gpu_prices.csv and
    gpu_architectures.csv with the columns of data/README.md (those with a default are optional).
    The files are read from your settings folder (~/.config/vllm-capacity on Linux), or from the
    folder in --facts or VLLM_CAPACITY_FACTS: `vllm-capacity --facts FOLDER facts`.
    """
    if table is None:
        click.echo(overview_text(own_tables(), width=columns()), nl=False)
        return
    _show(table, words, full=full, as_json=as_json)


def _show(table: str, words: tuple[str, ...], *, full: bool, as_json: bool) -> None:
    rows = find_rows(table, words)
    if as_json:
        click.echo(json.dumps([_plain(row) for row in rows], ensure_ascii=False))
        return
    if full or len(rows) == 1:
        click.echo("\n".join(row_text(row, width=columns()) for row in rows), nl=False)
        return
    click.echo(rows_text(table, rows, width=columns()), nl=False)


def _plain(row: FactRow) -> dict[str, object]:
    return {"is_own": row.is_own, **row.values}


def _listing(table: str, short_help: str) -> click.Command:
    """The command that lists one table, `facts TABLE`, as one word."""

    @click.command(table, short_help=short_help)
    @_shown
    def listing(words: tuple[str, ...], full: bool, as_json: bool) -> None:
        _show(table, words, full=full, as_json=as_json)

    listing.help = f"List the {table} that match all WORDS; a single match is shown in full."
    return listing


gpus = _listing("gpus", "List known GPUs.")
models = _listing("models", "List known models.")
prices = _listing("prices", "List known prices, with dates and sources.")
