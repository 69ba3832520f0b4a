"""`report`: a notebook run on a window, as one HTML page."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import click

from vllm_capacity.errors import InputError, needing_extra
from vllm_capacity.render.report.pdf import find_browser, print_pdf
from vllm_capacity.render.report.run import Progress, given_parameters
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
    "--tz",
    "time_zone",
    help="The time zone of days and hours of the week, such as Europe/Berlin. [default: UTC]",
)
@click.option(
    "--examples", is_flag=True, help="The pages of the example windows, with their own parameters."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("reports"),
    show_default=True,
    help="The folder the page and the index go to.",
)
@click.option(
    "--appendix",
    is_flag=True,
    help="Print, too, the tables behind the charts and how each figure is computed.",
)
@click.option("--pdf", is_flag=True, help="Also print the page to a PDF, by Chromium or Chrome.")
def report(
    window: str | None,
    notebook: str | None,
    pairs: tuple[str, ...],
    time_zone: str | None,
    examples: bool,
    out: Path,
    appendix: bool,
    pdf: bool,
) -> None:
    """Run a notebook on a window and write one HTML page, and an index over the folder's pages.

    The page needs no network and no server. Nothing is written where anything fails. Printed, by
    --pdf or from a browser, it is the answer and its charts.
    """
    if examples and (window or notebook or pairs or time_zone):
        raise InputError("--examples names its own windows and parameters; leave the others out.")
    browser = find_browser() if pdf else None
    wanted = EXAMPLES if examples else (_given(window, pairs, time_zone),)
    for parameters in wanted:
        order = ReportOrder(_notebook(notebook), parameters, out, has_appendix=appendix)
        with needing_extra("report"), _progress(order.notebook.name) as progress:
            path = write_report(
                order, made_at=datetime.now(UTC), cache=_cache_folder(), progress=progress
            )
        click.echo(path)
        if browser is not None:
            click.echo(print_pdf(path, browser))


def _given(window: str | None, pairs: tuple[str, ...], time_zone: str | None) -> dict[str, object]:
    given: dict[str, object] = dict(given_parameters(pairs))
    options = {"window": (window, "--window"), "time_zone": (time_zone, "--tz")}
    for name, (value, option) in options.items():
        if value is not None and name in given:
            raise InputError(f"The {name} is given twice: with {option} and with -p {name}=….")
    return {name: value for name, (value, _) in options.items() if value is not None} | given


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


@contextmanager
def _progress(name: str) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    # Under cron a bar would be a mail.
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"Running {name}", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _cache_folder() -> Path:
    """Where the drawing runtime is kept between runs."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "vllm-capacity"
