"""`init` writes the settings file from what it finds, `config check` reports its problems."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from msgspec import Struct

from vllm_capacity.cli.options.settings import SECTIONS, setting_options
from vllm_capacity.cli.options.settings_file import FILE_NAME, keys_of, read_settings_file
from vllm_capacity.errors import InputError
from vllm_capacity.live.access import checked_url, is_prometheus, is_server

_PROMETHEUS = "http://127.0.0.1:9090"
_FLEETS = ("fleet.csv", "fleet.yaml", "fleet.yml")
_LOCAL_TIME = Path("/etc/localtime")


class _Found(Struct, frozen=True):
    """A setting that was found, and where."""

    value: object
    where: str


@click.command(short_help="Write vllm-capacity.toml with settings detected here.")
@setting_options(*SECTIONS.values())
@click.pass_obj
def init(path: Path, /, **given: Any) -> None:  # noqa: ANN401  values of many types, by their names
    """Write a settings file, vllm-capacity.toml, from the options and what is detected here.

    Detected are a Parseable or Prometheus (PARSEABLE_URL and PARSEABLE_STREAM, PROMETHEUS_URL, or a
    Prometheus at port 9090 of this machine), fleet.csv or fleet.yaml, and the time zone. All other
    keys are in the file as comments, with a description. Passwords are never written: they come
    from the environment or a --profile.
    """
    if path.exists():
        raise InputError(f"{path} exists already. Edit it, or remove it first.")
    found = {**_found(given["origin"]), **_typed(given)}
    path.write_text(settings_text({name: one.value for name, one in found.items()}))
    for name, one in found.items():
        shown = f"{len(one.value)} of them" if isinstance(one.value, tuple) else one.value
        click.echo(f"{name}: {shown} ({one.where})")
    click.echo(f"{path} was written; check it with: vllm-capacity config check")
    read_settings_file(path, deep=True).require_sound()


@click.group(short_help="Check the settings file.")
def config() -> None:
    """The settings file: vllm-capacity.toml here, or --settings FILE before the command."""


@config.command(short_help="Report errors in the settings file, with line numbers.")
@click.pass_obj
def check(path: Path) -> None:
    """Report errors in the settings file, with line numbers; exit code 2 if there are any.

    Prices, time zones, mapping files and addresses are checked, too, without network access.
    """
    if not path.is_file():
        raise InputError(f"There is no {path}. `vllm-capacity init` writes one.")
    found = read_settings_file(path, deep=True)
    for problem in found.problems:
        click.echo(found.described(problem), err=True)
    if found.problems:
        sys.exit(2)
    click.echo(f"{path}: {len(found.values)} settings, no problem found.")


def settings_text(values: Mapping[str, object]) -> str:
    """A settings file with these values, by option, and every other key commented out."""
    return "\n".join(_lines(values))


def _lines(values: Mapping[str, object]) -> Iterator[str]:
    yield f"# {FILE_NAME}: settings of vllm-capacity. Command-line options override them."
    for table, section in SECTIONS.items():
        about = (section.__doc__ or "").splitlines()[0].removeprefix(f"[{table}]: ")
        yield from ("", f"[{table}]  # {about}")
        for key, name, about, default in keys_of(section):
            yield f"# {about}"
            if name in values:
                yield f"{key} = {_toml(values[name])}"
            else:
                yield f"# {key} = {'' if default is None else _toml(default)}".rstrip()
    yield ""


def _toml(value: object) -> str:
    """A value in TOML; texts are escaped as in JSON."""
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(str(value), ensure_ascii=False)


def _typed(given: Mapping[str, object]) -> dict[str, _Found]:
    """The settings given as options."""
    context = click.get_current_context()
    typed = click.core.ParameterSource.COMMANDLINE
    return {
        name: _Found(value, "given")
        for name, value in given.items()
        if context.get_parameter_source(name) is typed
    }


def _found(origin: str | None) -> dict[str, _Found]:
    """Settings found in environment, folder and machine; a source only if none is given."""
    found = {} if origin else _source(os.environ)
    for name in _FLEETS:
        if Path(name).is_file():
            found["fleet"] = _Found(name, "found here")
            break
    if zone := _local_zone():
        found["zone"] = _Found(zone, "of this machine")
    return found


def _source(environment: Mapping[str, str]) -> dict[str, _Found]:
    if url := environment.get("PARSEABLE_URL"):
        stream = environment.get("PARSEABLE_STREAM", "vllm_metrics")
        return {
            "origin": _Found(_without_secret(url), "PARSEABLE_URL"),
            "stream": _Found(stream, "PARSEABLE_STREAM, or the default"),
        }
    if url := environment.get("PROMETHEUS_URL"):
        return {"origin": _Found(_without_secret(url), "PROMETHEUS_URL")}
    if is_prometheus(_PROMETHEUS):
        return {"origin": _Found(_PROMETHEUS, "responds on this machine")}
    return {}


def _without_secret(url: str) -> str:
    return checked_url(url) if is_server(url) else url


def _local_zone() -> str | None:
    """The name of the machine's time zone; None if it has none or uses UTC."""
    if zone := os.environ.get("TZ", "").lstrip(":"):
        return None if zone == "UTC" else zone
    _, found, name = str(_LOCAL_TIME.resolve()).partition("zoneinfo/")
    return None if not found or name in ("UTC", "Etc/UTC") else name
