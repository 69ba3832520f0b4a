"""Locations of shipped files: in the repository of a clone, or inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

from vllm_capacity.errors import InputError

_PACKAGE = Path(__file__).resolve().parent


def shipped(relative: str) -> Path:
    """The path of a shipped file or folder, such as `data/llms.csv` or `notebooks`.

    In a clone it is the file in the repository, in an installed wheel its copy in the package.
    """
    # If installed, the parent folder is site-packages, where other packages may have a data/, too.
    for root in (_PACKAGE / "_shipped", _PACKAGE.parent):
        if (root / relative).exists():
            return root / relative
    raise InputError(f"This installation has no {relative}; reinstall vllm-capacity.")
