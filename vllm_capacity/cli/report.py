"""`report`: a notebook run on a window, as one HTML page."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import click

from vllm_capacity.cli.options import progress_bar
from vllm_capacity.errors import InputError, needing_extra
from vllm_capacity.render.report.run import given_parameters
from vllm_capacity.render.report.write import DEFAULT_NOTEBOOK, EXAMPLES, ReportOrder, write_report
from vllm_capacity.resources import shipped


@click.command(short_help="Run a notebook on a window into one HTML page.")
@click.option("--window", help="A window: its name, or the path of its folder.")
@click.option(
    "--notebook",
    help=f"A notebook: its path, or the name of a shipped one. [default: {DEFAULT_NOTEBOOK}]",
)
@click.option(
    "-p",
    "--parameter",
    "pairs",
    multiple=True,
    metavar="NAME=VALUE",
    help="A parameter of the notebook; may be given again.",
)
@click.option(
    "--examples", is_flag=True, help="The pages of the example windows; no other option but --out."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("reports"),
    show_default=True,
    help="The folder the page and the index go to.",
)
def report(
    window: str | None, notebook: str | None, pairs: tuple[str, ...], examples: bool, out: Path
) -> None:
    """Run a notebook on a window and write one HTML page, and an index over the folder's pages.

    The page needs no network and no server. Nothing is written where anything fails.
    """
    if examples and (window or notebook or pairs):
        raise InputError("--examples names its own windows and parameters; leave the others out.")
    wanted = EXAMPLES if examples else (_given(window, pairs),)
    for parameters in wanted:
        order = ReportOrder(notebook=_notebook(notebook), parameters=parameters, out=out)
        title = f"Running {order.notebook.name}"
        with needing_extra("report"), progress_bar(title) as progress:
            path = write_report(
                order, made_at=datetime.now(UTC), cache=_cache_folder(), progress=progress
            )
        click.echo(path)


def _given(window: str | None, pairs: tuple[str, ...]) -> dict[str, object]:
    given: dict[str, object] = dict(given_parameters(pairs))
    if window is None:
        return given
    if "window" in given:
        raise InputError("The window is given twice: with --window and with -p window=….")
    return {"window": window, **given}


def _notebook(name: str | None) -> Path:
    """The notebook at that path, or the shipped one of that name, with or without its suffix."""
    if name is None:
        return shipped(f"notebooks/{DEFAULT_NOTEBOOK}")
    if Path(name).is_file():
        return Path(name)
    folder = shipped("notebooks")
    for candidate in (folder / name, folder / f"{name}.ipynb"):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(path.name for path in folder.glob("*.ipynb")))
    raise InputError(f"There is no notebook {name!r}. Shipped are: {names or 'none'}.")


def _cache_folder() -> Path:
    """Where the drawing runtime is kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "vllm-capacity"
