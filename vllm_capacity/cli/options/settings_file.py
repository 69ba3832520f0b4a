"""The settings file, `vllm-capacity.toml`: its values by option, and its problems by line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import click
import msgspec
from msgspec import Struct

from vllm_capacity.cli.options import bounded
from vllm_capacity.cli.options.settings import PRICES, SECTIONS, is_number
from vllm_capacity.errors import InputError

FILE_NAME = "vllm-capacity.toml"
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\"' -]+?)\s*=")
_TOML_PLACE = re.compile(r"\(at line (\d+), column \d+\)")
_TOML_TYPES = {
    "str": "text in quotes",
    "float": "a number",
    "int": "a number",
    "bool": "true or false",
    "array": "a list [...]",
    "object": "a table",
}

VERBS = ("alerts", "cost", "figures", "plan", "pull", "report", "tenants")
"""The commands that read the settings file."""


class Problem(Struct, frozen=True):
    """A problem in a settings file, and its line (0: none)."""

    line: int
    what: str


@dataclass(frozen=True)
class SettingsFile:
    """The content of a settings file: values by option, and the problems found."""

    path: Path
    values: Mapping[str, object]
    problems: tuple[Problem, ...]

    def require_sound(self) -> None:
        """InputError with the first problem, if there is one."""
        for problem in self.problems:
            more = len(self.problems) - 1
            rest = f" ({more} more: vllm-capacity config check)" if more else ""
            raise InputError(f"{self.described(problem)}{rest}")

    def described(self, problem: Problem) -> str:
        """A problem in one line, in the format of compilers."""
        place = f":{problem.line}" if problem.line else ""
        return f"{self.path}{place}: {problem.what}"


def read_settings_file(path: Path, *, deep: bool = False) -> SettingsFile:
    """The settings of a file; with `deep`, it also checks that prices, zones and files exist.

    InputError if it cannot be read.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read the settings file {path}: {error}.") from None
    import tomllib  # most commands read no settings

    try:
        content = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        place = _TOML_PLACE.search(str(error))
        what = _TOML_PLACE.sub("", str(error)).strip()
        line = int(place[1]) if place else len(text.splitlines())
        return SettingsFile(path, {}, (Problem(line, f"{what}."),))
    values: dict[str, object] = {}
    problems = [*_read(content, path.parent, values, deep=deep)]
    found = [Problem(_line(text, name), what) for name, what in problems]
    return SettingsFile(path, values, tuple(sorted(found, key=lambda each: each.line)))


def _read(
    content: Mapping[str, Any], folder: Path, values: dict[str, object], *, deep: bool
) -> Iterator[tuple[str, str]]:
    """Put the valid values into `values`; yield the dotted name and problem of the others."""
    for table, body in content.items():
        if table not in SECTIONS or not isinstance(body, dict):
            yield table, _unknown("table", table, list(SECTIONS))
            continue
        section = SECTIONS[table]
        by_key = {_key(one): one for one in fields(section)}
        former = {name: one for one in fields(section) if (name := _former_key(one))}
        for key, value in body.items():
            name = f"{table}.{key}"
            one = by_key.get(key) or former.get(key)
            if one is None:
                yield name, _unknown("key", key, list(by_key))
                continue
            try:
                values[one.name] = _value(section, one, value, folder, deep=deep)
            except (InputError, click.BadParameter, msgspec.ValidationError) as error:
                yield name, f"{name}: {_message(error)}"
    ways = [way for way in PRICES if way in values]
    if len(ways) > 1:
        named = " and ".join(ways)
        yield f"price.{ways[-1]}", f"the price is given by {named}; give it one way."


def _value(section: type, one: Field[Any], value: object, folder: Path, *, deep: bool) -> object:
    """A value converted to the type of its field, with paths relative to the file's folder."""
    hint, known = get_type_hints(section)[one.name], one.metadata
    written = {Path: str, Path | None: str, tuple[Path, ...]: tuple[str, ...]}
    checked: Any = msgspec.convert(value, written.get(hint, hint))
    if hint in (Path, Path | None):
        checked = Path(checked) if folder == Path() else folder / checked
    elif hint == tuple[Path, ...]:
        checked = tuple(folder / each for each in checked)
    call_back = bounded if is_number(section, one) else known.get("click", {}).get("callback")
    if call_back is not None:
        option = click.Option([known["option"]])
        checked = call_back(click.Context(click.Command(None)), option, checked)
    section(**{one.name: checked})
    if deep and known.get("check"):
        known["check"](checked)
    return checked


def _message(error: Exception) -> str:
    if isinstance(error, msgspec.ValidationError):
        return _plainer(str(error))
    text = error.format_message() if isinstance(error, click.BadParameter) else str(error)
    text = re.sub(r"^Invalid value for '[^']*': ", "", text)
    return text if text.endswith(".") else f"{text}."


def _plainer(message: str) -> str:
    """A type error of msgspec in the terms of TOML."""
    found = re.match(r"Expected `(\w+)[^`]*`, got `(\w+)`", message)
    if not found:
        return f"{message}."
    wanted, had = (_TOML_TYPES.get(word, word) for word in found.groups())
    return f"must be {wanted}, not {had}."


def _key(one: Field[Any]) -> str:
    return one.metadata.get("key") or one.name


def _former_key(one: Field[Any]) -> str:
    former = str(one.metadata.get("former", ""))
    return former[2:] if former.startswith("--") else ""


def _unknown(kind: str, name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"there is no {kind} {name!r}; {hint}There are: {', '.join(known)}."


def _line(text: str, name: str) -> int:
    """The line in which a dotted name is set, or its table starts; 0 if it is not found."""
    table, header = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if found := _HEADER.match(line):
            table = found[1].strip("\"'")
            header = number if name.split(".")[0] == table else header
            if table == name:
                return number
        elif found := _KEY.match(line):
            bare = re.sub(r"[\"' ]", "", found[1])
            if ".".join(filter(None, (table, bare))) == name:
                return number
    return header


def keys_of(section: type) -> Iterator[tuple[str, str, str, object]]:
    """The keys of a table of the file, each with its option's name, help and default."""
    for one in fields(section):
        yield _key(one), one.name, one.metadata["help"], one.default
