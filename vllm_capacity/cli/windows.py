"""`windows`: the windows that commands find by name, with their contents."""

from __future__ import annotations

import json
from pathlib import Path

import click
from msgspec.structs import asdict

from vllm_capacity.cli.options import columns
from vllm_capacity.errors import InputError
from vllm_capacity.render.terminal import windows_text
from vllm_capacity.telemetry.window import KnownWindow, known_windows
from vllm_capacity.timerange import iso


@click.command(short_help="List windows, and what each contains.")
@click.argument("folders", nargs=-1, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the rows as JSON; times in UTC.")
def windows(folders: tuple[Path, ...], as_json: bool) -> None:
    """List the windows in FOLDERS; default: those that commands find by name.

    To list the days of a nightly report, give its folder: `vllm-capacity windows windows/`.
    """
    for folder in folders:
        if str(folder).startswith("s3:/"):  # paths collapse the double slash
            raise InputError(
                "Windows in S3 cannot be listed; use s3://BUCKET/FOLDER wherever a command takes "
                "WINDOW."
            )
        if not folder.is_dir():
            raise InputError(f"No folder {str(folder)!r} of windows.")
    found = known_windows(folders)
    if as_json:
        click.echo(json.dumps([_plain(each) for each in found], ensure_ascii=False))
        return
    click.echo(windows_text(found, width=columns()), nl=False)


def _plain(window: KnownWindow) -> dict[str, object]:
    times = {name: at and iso(at) for name, at in (("start", window.start), ("end", window.end))}
    return {**asdict(window), "path": str(window.path), **times}
