"""What may be passed to a notebook: only names it declares, only values of the type it declares.

papermill takes an unknown parameter with no more than a log line, and pastes parameter *names* into
the notebook as code. So names and values are settled here, before anything runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from vllm_capacity.errors import InputError

Value = int | float | str | bool | None

_OPTIONAL = re.compile(r"(?:typing\.)?Optional\[(\w+)\]")
_TRUE = frozenset({"true", "yes", "1", "on"})
_FALSE = frozenset({"false", "no", "0", "off"})
_NONE = frozenset({"", "none", "null"})
_TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}


@dataclass(frozen=True)
class Parameter:
    """One parameter a notebook declares. `annotation` is as written there, `default` is source."""

    name: str
    annotation: str
    default: str
    help: str


def declared_parameters(notebook: Path) -> tuple[Parameter, ...]:
    """The parameters of a notebook's cell tagged `parameters`, in its order; empty without one.

    InputError for a notebook that names no kernel: papermill then knows no language to read.
    """
    import papermill

    try:
        found = papermill.inspect_notebook(str(notebook))
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise InputError(
            f"The parameters of {notebook.name} cannot be read: {error} Save it once in JupyterLab."
        ) from error
    return tuple(
        Parameter(name, str(each["inferred_type_name"]), str(each["default"]), str(each["help"]))
        for name, each in found.items()
    )


def settled_parameters(
    declared: Sequence[Parameter], given: Mapping[str, object], *, notebook: str
) -> dict[str, Value]:
    """The given values in the declared types; text is read, other values must be of the type.

    Raises InputError for a name that is unknown or no identifier, and for a value of another type.
    """
    by_name = {parameter.name: parameter for parameter in declared}
    settled: dict[str, Value] = {}
    for name, value in given.items():
        if name not in by_name:
            raise InputError(_unknown(name, list(by_name), notebook))
        settled[name] = _typed(by_name[name], value)
    return settled


def given_parameters(pairs: Sequence[str]) -> dict[str, str]:
    """`name=value` pairs of a command line as a mapping; a name given twice is an error."""
    given: dict[str, str] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise InputError(f"Cannot read the parameter {pair!r}; write -p name=value.")
        if name in given:
            raise InputError(f"The parameter {name} is given twice.")
        given[name] = value
    return given


def _unknown(name: str, known: list[str], notebook: str) -> str:
    if not known:
        return f"{notebook} declares no parameters, so {name!r} cannot be set."
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"Did you mean {near[0]}? " if near else ""
    return f"{notebook} has no parameter {name!r}. {hint}It has: {', '.join(known)}."


def _typed(parameter: Parameter, value: object) -> Value:
    annotation = parameter.annotation.strip("\"' ")
    optional = _OPTIONAL.fullmatch(annotation)
    bare = optional.group(1) if optional else annotation
    if bare not in _TYPES:
        raise InputError(
            f"The parameter {parameter.name} is declared {annotation}; only int, float, str, "
            "bool and Optional of them can be set from outside."
        )
    if optional and (value is None or (isinstance(value, str) and value.lower() in _NONE)):
        return None
    try:
        return _read(bare, value) if isinstance(value, str) else _checked(bare, value)
    except ValueError:
        raise InputError(
            f"The parameter {parameter.name} is declared {annotation}; {value!r} is not one."
        ) from None


def _read(bare: str, text: str) -> Value:
    if bare == "str":
        return text
    if bare == "bool":
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise ValueError(text)
    return _checked(bare, _TYPES[bare](text))


def _checked(bare: str, value: object) -> Value:
    if bare == "float" and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, Value) or type(value) is not _TYPES[bare]:
        raise ValueError(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(value)
    return value
