"""The base of results: conversion to JSON, and display for people.

A result is read by its attributes. `as_dict` is the only conversion of a result to a `dict`, and
the JSON of all commands is made with it.
"""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar

from msgspec import Struct

from vllm_capacity.timerange import iso


@contextmanager
def many_records() -> Iterator[None]:
    """A context without garbage collection of reference cycles, which records do not have.

    For a million records, searching for cycles takes longer than creating them.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


SCHEMA_VERSION = 2
"""The version of the JSON that all commands print."""


class Record(Struct, frozen=True, dict=True):
    """A base for results.

    `renamed` maps keys of the machine interface's first version to their present attributes.
    """

    renamed: ClassVar[Mapping[str, str]] = {}

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, ready for JSON: nested results as objects, times as ISO 8601."""
        return {name: plain(getattr(self, name)) for name in self.__struct_fields__}

    def __repr__(self) -> str:
        """A line per field, with nested results abbreviated."""
        names = self.__struct_fields__
        width = max(map(len, names), default=0)
        lines = [f"  {name:<{width}}  {_brief(getattr(self, name))}" for name in names]
        return "\n".join([type(self).__name__, *lines])

    def _repr_html_(self) -> str:
        """The same as a table."""
        from html import escape  # only for Jupyter, and its table of entities is long

        rows = "".join(
            f"<tr><th>{escape(name)}</th><td>{escape(_brief(getattr(self, name)))}</td></tr>"
            for name in self.__struct_fields__
        )
        return f'<table class="mathjax_ignore tex2jax_ignore">{rows}</table>'

    def __getitem__(self, key: str) -> Any:  # noqa: ANN401  whatever the field holds
        """A field by its key, as in the dictionaries of earlier releases; deprecated."""
        name = self.renamed.get(key, key)
        if name not in self.__struct_fields__:
            raise KeyError(key)
        deprecated(f"{type(self).__name__}[{key!r}]", f"the attribute {name}")
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        """Not iterable: `__getitem__` alone would make it so by position."""
        raise TypeError(f"{type(self).__name__} is not iterable; read its attributes")


def plain(value: object) -> Any:  # noqa: ANN401  what JSON has
    """A value in JSON types: objects, lists, texts, numbers, booleans and null."""
    if isinstance(value, Record):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, datetime):
        return iso(value)
    return value.value if isinstance(value, Enum) else value


def _brief(value: object) -> str:
    """A value as one line of a repr."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_brief(each)}" for key, each in value.items()) or "none"
    if isinstance(value, list | tuple):
        return f"{len(value)} rows" if value else "none"
    if isinstance(value, Record) and type(value).__str__ is Record.__str__:
        inner = (f"{name} {_brief(getattr(value, name))}" for name in value.__struct_fields__)
        return ", ".join(inner)
    if isinstance(value, datetime):
        return iso(value)
    return f"{value:,.6g}" if isinstance(value, float) else str(value)


def deprecated(what: str, instead: str) -> None:
    """Warn that `what` will be removed in the next release."""
    warnings.warn(f"{what} is deprecated; use {instead}", DeprecationWarning, stacklevel=3)
