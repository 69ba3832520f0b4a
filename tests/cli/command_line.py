"""A command line run in this process, as `main` runs it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from vllm_capacity.cli import main


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """Its exit code, its stdout, its stderr."""
    monkeypatch.setattr(sys, "argv", ["vllm-capacity", *words])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def completed(
    capsys,
    *words: object,
    cwd: Path | None = None,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """The result of `subprocess.run` for these arguments, in that folder.

    With an `environment`, of this process's only PATH is there beside it.
    """
    with pytest.MonkeyPatch.context() as patched:
        if cwd is not None:
            patched.chdir(cwd)
        if environment is not None:
            for name in set(os.environ) - {"PATH"}:
                patched.delenv(name)
            for name, value in environment.items():
                patched.setenv(name, value)
        return subprocess.CompletedProcess(words, *run(patched, capsys, *map(str, words)))
