"""All errors that a user can encounter, and their exit codes on the command line.

    CapacityError                 exit 2
    ├── InputError                an input cannot be used (file, argument, parameter)
    │   ├── WindowError           no such window, damaged, or it already exists
    │   ├── NoTelemetryError      a source without series of a known server, or not at that time
    │   └── ParseError            text that is not in its declared format
    └── SourceError    exit 3     a server or store failed, or rejected the request

A message states what was requested, what was found, and what to try. Unknown figures are not
errors: they are an `Estimate` with a reason, or None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+"
)


def plain(text: object) -> str:
    """External text made safe for a message: no characters that move the cursor or reorder text.

    Spaces replace control characters, which start terminal escapes, marks that change the direction
    of text, and lone surrogates, which cannot be written.
    """
    return _CONTROL.sub(" ", str(text))


class CapacityError(Exception):
    """The base of this package's errors; the command line prints one line of it, no traceback."""

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(plain(message))


class InputError(CapacityError):
    """An input cannot be used: a file, an argument, a parameter."""


class WindowError(InputError):
    """A window does not exist, is damaged, or already exists."""


class NoTelemetryError(InputError):
    """A source has no series of a known server, or no sample at the requested time."""


class ParseError(InputError):
    """Text is not in the format it claims to be."""


class SourceError(CapacityError):
    """A server or a store failed, or rejected the request."""

    exit_code = 3


@contextmanager
def needing_extra(extra: str) -> Iterator[None]:
    """A context for code that may lack a package: InputError that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("vllm_"):
            raise
        raise InputError(
            f"This needs the package {error.name}, which is not installed. Install it with: "
            f"pip install 'vllm-capacity[{extra}]'."
        ) from None
