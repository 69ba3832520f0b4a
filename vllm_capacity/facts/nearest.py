"""Which of the names we know somebody may have meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

_SHOWN = 4
_LEAST_LETTERS = 3
"""A shorter word, such as 8b, is the beginning of anything."""


def nearest(asked: str, names: Iterable[str]) -> list[str]:
    """At most four of the names, the likeliest first; none where nothing is near.

    Names that hold what was asked, then names of a family that it names (their first word), then
    names spelt alike.
    """
    known = list(dict.fromkeys(names))
    for found in (
        [name for name in known if asked and asked in name],
        [name for name in known if _names_family_of(asked, name)],
    ):
        if found:
            likeness = {name: SequenceMatcher(None, asked, name).ratio() for name in found}
            return sorted(found, key=lambda name: -likeness[name])[:_SHOWN]
    return get_close_matches(asked, known, n=_SHOWN)


def _names_family_of(asked: str, name: str) -> bool:
    family = _words(name)[:1]
    return any(_is_beginning(word, first) for first in family for word in _words(asked))


def _is_beginning(one: str, other: str) -> bool:
    """Whether they are one word, or one begins with the other."""
    short, long = sorted((one, other), key=len)
    return one == other or (len(short) >= _LEAST_LETTERS and long.startswith(short))


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z0-9.]+", name)
