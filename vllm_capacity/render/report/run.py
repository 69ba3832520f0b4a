"""Runs a notebook with checked parameters in a separate process; nothing is written.

papermill only logs an unknown parameter, and pastes parameter *names* into the notebook as code. So
names, values and assumptions are checked here, before anything runs.

papermill reads and inserts the parameters; nbclient runs the cells. Why papermill does not run
them, too: it encodes the whole run notebook as JSON, even if it has no file to write it to.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec import Struct
from traitlets.config import Config

from vllm_capacity import errors
from vllm_capacity.assumptions import TARGETS, Slo, pricing, slo_of
from vllm_capacity.errors import InputError
from vllm_capacity.holding import scratch
from vllm_capacity.interface import RENAMED_PARAMETERS
from vllm_capacity.render import quick_jsonschema  # noqa: F401  before papermill, nbformat
from vllm_capacity.render.report import RENDERER_VARIABLE, JsonObject
from vllm_capacity.timerange import time_zone

if TYPE_CHECKING:
    from nbclient.exceptions import CellExecutionError

Value = int | float | str | bool | None
Progress = Callable[[int, int], None]
Seen = Callable[[JsonObject], None]

_CELL_SECONDS = 1800
_OURS = {
    name: error
    for name, error in vars(errors).items()
    if isinstance(error, type) and issubclass(error, errors.CapacityError)
}
_OPTIONAL = re.compile(r"(?:typing\.)?Optional\[(\w+)\]")
_TRUE = frozenset({"true", "yes", "1", "on"})
_FALSE = frozenset({"false", "no", "0", "off"})
_ENDS_WELL = ("", "0")  # exit codes with which a cell may end the notebook, as in papermill
_NONE = frozenset({"", "none", "null"})
_TYPES: dict[str, type] = {"int": int, "float": float, "str": str, "bool": bool}


class Parameter(Struct, frozen=True):
    """A parameter declared by a notebook; `annotation` and `default` as in its source."""

    name: str
    annotation: str
    default: str
    help: str


class Executed(Struct, frozen=True):
    """The result of a run: the cells in order, as nbformat has them, and its title."""

    cells: tuple[JsonObject, ...]
    title: str


def declared_parameters(notebook: Path) -> tuple[Parameter, ...]:
    """The parameters of a notebook's cell tagged `parameters`, in its order; empty without one.

    InputError for a notebook that names no kernel, because papermill then does not know its
    language.
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


def checked_parameters(
    declared: Sequence[Parameter], given: Mapping[str, object], *, notebook: str
) -> dict[str, Value]:
    """The given values in the declared types; text is parsed, other values must have the type.

    Names of an earlier release are mapped to their new ones, and a single latency target to its
    part of `slo`. InputError for a name that is unknown or no identifier, for a value of another
    type, and for an invalid price or target.
    """
    by_name = {parameter.name: parameter for parameter in declared}
    checked: dict[str, Value] = {}
    for name, value in _with_targets_joined(given, by_name).items():
        declared_name = next((each for each in _names(name) if each in by_name), None)
        if declared_name is None:
            raise InputError(_unknown(name, list(by_name), notebook))
        checked[declared_name] = _typed(by_name[declared_name], value)
    _check_assumptions(checked)
    return checked


def given_parameters(pairs: Sequence[str]) -> dict[str, str]:
    """`name=value` pairs of a command line as a mapping; InputError if a name is given twice."""
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


def executed_notebook(
    notebook: Path, parameters: Mapping[str, Value], *, progress: Progress, seen: Seen
) -> Executed:
    """The notebook after a run from top to bottom with these (checked) parameters.

    `progress` gets (code cells done, total), `seen` gets each cell after it has run. If a cell
    raises one of this package's errors, the same error is raised here; any other error becomes an
    InputError that names the cell.
    """
    import papermill
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    prepared = papermill.execute_notebook(
        str(notebook), None, parameters=dict(parameters), progress_bar=False, prepare_only=True
    )
    codes = [(index, cell) for index, cell in enumerate(prepared.cells) if _is_code(cell)]
    progress(0, len(codes))
    with _page_renderer(), _own_sockets() as sockets:
        client = NotebookClient(
            prepared,
            timeout=_CELL_SECONDS,
            raise_on_iopub_timeout=True,
            force_raise_errors=True,
            config=sockets,
            shutdown_kernel="immediate",  # a graceful one writes errors to this process's stderr
        )
        try:
            with client.setup_kernel():
                for done, (index, cell) in enumerate(codes, start=1):
                    seen(client.execute_cell(cell, index))
                    progress(done, len(codes))
        except CellExecutionError as error:
            if error.ename != "SystemExit" or error.evalue not in _ENDS_WELL:
                raise _as_ours(error, index, notebook) from None
        except DeadKernelError:
            raise InputError(
                f"{notebook.name}: its Python process died, perhaps because it ran out of memory. "
                "Try a shorter part of the window (-p start=…, -p end=…)."
            ) from None
    return Executed(tuple(prepared.cells), _title(prepared.cells, notebook))


def read_cells(notebook: Path) -> list[JsonObject]:
    """The cells of a notebook file; InputError if it is not one."""
    import nbformat
    from jsonschema import ValidationError

    try:
        read = nbformat.read(str(notebook), as_version=4)  # type: ignore[no-untyped-call]
        return list(read.cells)
    except FileNotFoundError:
        raise InputError(f"There is no notebook {notebook}.") from None
    except (ValueError, ValidationError, AttributeError, KeyError, TypeError, RecursionError):
        raise InputError(f"{notebook} is not a Jupyter notebook.") from None


@contextmanager
def _page_renderer() -> Iterator[None]:
    """A context in which the environment selects the page renderer for the kernel.

    The old value is restored afterwards.
    """
    before = os.environ.get(RENDERER_VARIABLE)
    os.environ[RENDERER_VARIABLE] = "page"
    try:
        yield
    finally:
        if before is None:
            del os.environ[RENDERER_VARIABLE]
        else:
            os.environ[RENDERER_VARIABLE] = before


@contextmanager
def _own_sockets() -> Iterator[Config]:
    """Settings for kernel communication over sockets in a folder of this run, not over ports.

    No other user of the machine can reach them, and two runs in one folder do not collide.
    """
    with scratch("vllm-capacity-kernel-") as folder:
        yield Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})


def _is_code(cell: JsonObject) -> bool:
    return bool(cell["cell_type"] == "code")


def _as_ours(error: CellExecutionError, index: int, notebook: Path) -> errors.CapacityError:
    lines = str(error.evalue).strip().splitlines() or ["no message"]
    if error.ename in _OURS:
        return _OURS[error.ename](lines[0])
    return InputError(f"{notebook.name} stopped in cell {index}: {error.ename}: {lines[0]}")


def _title(cells: Sequence[JsonObject], notebook: Path) -> str:
    for cell in cells:
        if cell["cell_type"] == "markdown":
            for line in cell["source"].splitlines():
                if line.startswith("# "):
                    return str(line[2:].strip())
    return notebook.stem


def _names(name: str) -> tuple[str, ...]:
    """A parameter's name as given, and as notebooks of other releases declare it."""
    earlier = (old for old, new in RENAMED_PARAMETERS.items() if new == name)
    return (name, *filter(None, (RENAMED_PARAMETERS.get(name),)), *earlier)


def _with_targets_joined(
    given: Mapping[str, object], by_name: Mapping[str, Parameter]
) -> dict[str, object]:
    """The values with single latency targets merged into `slo`, if the notebook declares that."""
    if "slo" not in by_name:
        return dict(given)
    fields_of = {name: RENAMED_PARAMETERS.get(name, name) for name in given if name not in by_name}
    single = {
        field: _target_seconds(name, given[name])
        for name, field in fields_of.items()
        if field in TARGETS
    }
    if not single:
        return dict(given)
    text = given.get("slo", by_name["slo"].default.strip("\"'"))
    joined = Slo(**{**slo_of(str(text)).targets, **single})
    others = {name: value for name, value in given.items() if fields_of.get(name) not in single}
    return {**others, "slo": joined.text}


def _target_seconds(name: str, value: object) -> float | None:
    seconds = _typed(Parameter(name, "Optional[float]", "", ""), value)
    return seconds if isinstance(seconds, float) else None


def _check_assumptions(checked: Mapping[str, Value]) -> None:
    """InputError for prices, GPU counts and targets that the assumptions do not allow.

    Also for an unknown time zone.
    """
    given: dict[str, Any] = {
        RENAMED_PARAMETERS.get(name, name): value
        for name, value in checked.items()
        if value is not None and value != ""
    }
    Slo(**{name: given[name] for name in TARGETS if name in given})
    slo_of(given.get("slo"))
    pricing(
        given.get("price"),
        gpus_per_engine=given.get("gpus_per_engine", 1.0),
        price_rules=given.get("price_rules"),
    )
    time_zone(given.get("time_zone", "UTC"))


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
