"""Every error a user can meet, and the exit code each one ends the command line with.

    CapacityError                 exit 2
    ├── InputError                what was given cannot be used (file, argument, parameter)
    │   ├── WindowError           no such window, damaged, or it exists already
    │   ├── NoTelemetryError      a source that has nothing of a server we know, or not then
    │   └── ParseError            a line of someone's format that is not of that format
    └── SourceError    exit 3     a server or store failed, or refused us

A message says what was asked, what was found, and what to try. Unknown figures are no errors:
they are an `Estimate` with a reason, or None.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_CONTROL = re.compile(
    r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]+"
)


def plain(text: object) -> str:
    """What others wrote, fit for a message: no character that moves the cursor or the reading.

    Control characters, which begin a terminal's escapes, marks that turn the direction of the text,
    and halves of surrogate pairs, which cannot be written, become spaces.
    """
    return _CONTROL.sub(" ", str(text))


class CapacityError(Exception):
    """Root of this package's errors; the command line prints one line of it, no traceback."""

    exit_code = 2

    def __init__(self, message: object = "") -> None:
        super().__init__(plain(message))


class InputError(CapacityError):
    """Something given cannot be used: a file, an argument, a parameter."""


class WindowError(InputError):
    """A window that is not there, is damaged, or is in the way."""


class NoTelemetryError(InputError):
    """A source answered, but has no series of a server we know, or no sample of the time asked."""


class ParseError(InputError):
    """Text that is not of the format it claims to be."""


class SourceError(CapacityError):
    """A server or a store failed, or refused us."""

    exit_code = 3


@contextmanager
def needing_extra(extra: str) -> Iterator[None]:
    """What is run inside may lack a package: an InputError that says which extra brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("vllm_"):
            raise
        raise InputError(
            f"This needs the package {error.name}, which is not installed. Install it with: "
            f"pip install 'vllm-capacity[{extra}]'."
        ) from None
