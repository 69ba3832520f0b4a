"""Engines by names that are short enough for a picture and still tell them apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_LONGEST = 14  # letters of a name; a longer one loses what all begin with
_BOUNDARY = re.compile(r"[-_./:@]")
_CUT = "…"


def short_names(engines: Iterable[str]) -> dict[str, str]:
    """Each name without what all of them end with, and, where still long, begin with.

    Names are cut where a word of them ends: of vllm-7d9f8-x2:8000/0 and vllm-7d9f8-k4:8000/0, …x2
    and …k4 are left. An engine alone keeps its name.
    """
    names = list(dict.fromkeys(engines))
    if len(names) < 2:
        return {name: name for name in names}
    tail = _common_words([name[::-1] for name in names])
    heads = [name[: len(name) - tail] for name in names]
    if max(map(len, heads)) <= _LONGEST:
        return dict(zip(names, heads, strict=True))
    cut = _common_words(heads)
    shown = [f"{_CUT if cut else ''}{head[cut:]}" for head in heads]
    return dict(zip(names, shown, strict=True))


def _common_words(names: Sequence[str]) -> int:
    """How many letters all begin with, up to the last end of a word."""
    least, most = min(names), max(names)  # what these two have in common all have
    common = next((at for at, one in enumerate(least) if one != most[at]), len(least))
    ends = [match.end() for match in _BOUNDARY.finditer(least[:common])]
    return ends[-1] if ends else 0
