"""A command line run in this process, as `main` runs it."""

import sys

from vllm_capacity.cli import main


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """Its exit code, what it prints, what it complains."""
    monkeypatch.setattr(sys, "argv", ["vllm-capacity", *words])
    code = 0
    try:
        main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    shown = capsys.readouterr()
    return code, shown.out, shown.err
