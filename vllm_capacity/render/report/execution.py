"""Running a notebook for its outputs: parameters injected, one process, nothing written.

Why `output_path=None`: papermill otherwise writes and re-validates the whole notebook twice a cell,
which is most of the run. The page is written once, at the end, by us.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traitlets.config import Config

from vllm_capacity import errors
from vllm_capacity.holding import scratch
from vllm_capacity.render.report.contract import RENDERER_VARIABLE

if TYPE_CHECKING:
    from papermill.exceptions import PapermillExecutionError

Progress = Callable[[int, int], None]
Seen = Callable[[Mapping[str, Any]], None]

_CELL_SECONDS = 1800
_OURS = {
    name: error
    for name, error in vars(errors).items()
    if isinstance(error, type) and issubclass(error, errors.CapacityError)
}


@dataclass(frozen=True)
class Executed:
    """What came out of a run: the cells in order, as nbformat has them, and its title."""

    cells: tuple[Mapping[str, Any], ...]
    title: str


def executed_notebook(
    notebook: Path, parameters: Mapping[str, Any], *, progress: Progress, seen: Seen
) -> Executed:
    """The notebook run from top to bottom with these (settled) parameters.

    `progress` is told (code cells done, of how many), `seen` is shown each cell when it has run. A
    cell that raises one of this package's errors raises it here again; any other error becomes an
    InputError that names the cell.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    done = 0

    def cell_done(cell: Mapping[str, Any], **_: object) -> None:
        nonlocal done
        done += 1
        seen(cell)
        progress(done, total)

    total = sum(cell["cell_type"] == "code" for cell in read_cells(notebook))
    total += bool(parameters)  # papermill adds a cell for them
    progress(0, total)
    with _page_renderer(), _own_sockets() as sockets:
        try:
            ran = papermill.execute_notebook(
                str(notebook),
                None,
                parameters=dict(parameters),
                progress_bar=False,
                execution_timeout=_CELL_SECONDS,
                on_cell_executed=cell_done,
                config=sockets,
                shutdown_kernel="immediate",  # a kernel asked politely complains on our stderr
            )
        except PapermillExecutionError as error:
            raise _told(error, notebook) from None
        except DeadKernelError:
            raise errors.InputError(
                f"{notebook.name}: its Python process died, perhaps for want of memory. "
                "Try a shorter part of the window (-p start=…, -p end=…)."
            ) from None
    return Executed(tuple(ran.cells), _title(ran.cells, notebook))


def read_cells(notebook: Path) -> list[Mapping[str, Any]]:
    """The cells of a notebook file; InputError where it is not one."""
    import nbformat
    from jsonschema import ValidationError

    try:
        read = nbformat.read(str(notebook), as_version=4)  # type: ignore[no-untyped-call]
        return list(read.cells)
    except FileNotFoundError:
        raise errors.InputError(f"There is no notebook {notebook}.") from None
    except (ValueError, ValidationError, AttributeError, KeyError, TypeError, RecursionError):
        raise errors.InputError(f"{notebook} is not a Jupyter notebook.") from None


@contextmanager
def _page_renderer() -> Iterator[None]:
    """The kernel's environment says that a page will draw its charts; ours is put back after."""
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
    """Settings that let the kernel talk over sockets in a folder of this run, not over ports.

    Nobody else on the machine can reach them, and two runs in one folder do not meet.
    """
    with scratch("vllm-capacity-kernel-") as folder:
        yield Config(KernelManager={"transport": "ipc", "ip": f"{folder}/kernel"})


def _told(error: PapermillExecutionError, notebook: Path) -> errors.CapacityError:
    said = str(error.evalue).strip().splitlines() or ["no message"]
    if error.ename in _OURS:
        return _OURS[error.ename](said[0])
    return errors.InputError(
        f"{notebook.name} stopped in cell {error.cell_index}: {error.ename}: {said[0]}"
    )


def _title(cells: list[Mapping[str, Any]], notebook: Path) -> str:
    for cell in cells:
        if cell["cell_type"] == "markdown":
            for line in cell["source"].splitlines():
                if line.startswith("# "):
                    return str(line[2:].strip())
    return notebook.stem
