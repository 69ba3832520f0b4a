"""Short engine names that fit a chart and are still unique."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_LONGEST = 14  # letters of a name; longer ones lose their common beginning
_BOUNDARY = re.compile(r"[-_./:@]")
_CUT = "…"


def short_names(engines: Iterable[str]) -> dict[str, str]:
    """Each name without the ending common to all and, if still long, without the common beginning.

    Names are cut only at word boundaries: vllm-7d9f8-x2:8000/0 and vllm-7d9f8-k4:8000/0 become …x2
    and …k4. A single engine keeps its name.
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
    """The length of the common beginning of all names, up to the last word boundary."""
    least, most = min(names), max(names)  # a beginning common to these two is common to all
    common = next((at for at, one in enumerate(least) if one != most[at]), len(least))
    ends = [match.end() for match in _BOUNDARY.finditer(least[:common])]
    return ends[-1] if ends else 0
