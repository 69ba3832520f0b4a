"""Label matchers in Prometheus syntax: `{namespace="team-a",pod=~"vllm-.*"}`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

from vllm_capacity.errors import InputError, plain

_MATCHER = r'([a-zA-Z_][a-zA-Z0-9_]*)\s*(=~|!~|!=|=)\s*"((?:[^"\\\n]|\\.)*)"'
_UNGROUPED = re.sub(r"\((?!\?)", "(?:", _MATCHER)
_MATCHERS = re.compile(rf"\{{?\s*({_UNGROUPED}(?:\s*,\s*{_UNGROUPED})*)\s*,?\s*\}}?")
_ESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n", r"\t": "\t"}


class Selector(Struct, frozen=True):
    """Label matchers that must all hold; `bare` is their text without braces."""

    bare: str
    matchers: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        return f"{{{self.bare}}}"

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether these labels match; a missing label counts as empty, as in Prometheus."""
        return all(_matches(labels.get(name, ""), how, value) for name, how, value in self.matchers)


def _matches(label: str, how: str, value: str) -> bool:
    found = re.fullmatch(value, label) is not None if how.endswith("~") else label == value
    return found is not how.startswith("!")


def selector(text: str) -> Selector:
    """The matchers in a text, with or without braces.

    InputError for invalid matchers, and for an invalid regular expression.
    """
    bare = text.strip()
    found = _MATCHERS.fullmatch(bare)
    if found is None or bare.startswith("{") != bare.endswith("}"):
        raise InputError(
            f"Cannot read the selector {plain(text)[:200]!r}: expected label matchers of "
            'Prometheus, such as {namespace="team-a"} (in quotes for the shell).'
        )
    matchers = tuple(
        (name, how, re.sub(r"\\.", lambda escaped: _ESCAPED.get(escaped[0], escaped[0]), value))
        for name, how, value in re.findall(_MATCHER, found[1])
    )
    for _, how, value in matchers:
        if how.endswith("~"):
            _check_expression(value)
    return Selector(found[1], matchers)


def _check_expression(text: str) -> None:
    try:
        re.compile(text)
    except re.error as error:
        raise InputError(
            f"Cannot read the regular expression {text!r} of a selector: {error}."
        ) from None
