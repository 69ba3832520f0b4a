"""Prints a page to PDF with a local Chromium, as its own print dialog would.

Why not a library that lays out HTML: none supports the CSS of the page, and most machines already
have a browser. The page loads nothing from a network, so none is needed here either.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.holding import scratch
from vllm_capacity.render.report.files import write_whole

BROWSERS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "microsoft-edge",
)
_MAX_SECONDS = 120
_OPTIONS = (
    "--headless",
    "--disable-gpu",
    "--disable-extensions",
    "--no-first-run",
    "--no-pdf-header-footer",
)


def find_browser(path: str | None = None) -> Path:
    """The first Chromium or Chrome in `path`, formatted like PATH; None means PATH itself.

    InputError if there is none.
    """
    found = next(filter(None, (shutil.which(name, path=path) for name in BROWSERS)), None)
    if found is None:
        raise InputError(
            f"A PDF is printed by Chromium, and none was found (looked for {', '.join(BROWSERS)}). "
            "Install one, or remove --pdf and print the page from any browser."
        )
    return Path(found)


def print_pdf(page: Path, browser: Path) -> Path:
    """Print the page atomically to a PDF of the same name beside it, and return its path.

    SourceError if the browser fails, makes no PDF, or takes more than two minutes.
    """
    with scratch("vllm-capacity-pdf-") as folder:
        printed = folder / "page.pdf"
        command = [
            str(browser),
            *_OPTIONS,
            *(["--no-sandbox"] if os.geteuid() == 0 else []),  # Chromium's own sandbox refuses root
            f"--user-data-dir={folder / 'profile'}",  # not the user's own profile
            f"--print-to-pdf={printed}",
            page.resolve().as_uri(),
        ]
        try:
            subprocess.run(command, check=True, capture_output=True, timeout=_MAX_SECONDS)
            made = printed.read_bytes()
        except (OSError, subprocess.SubprocessError) as error:
            raise SourceError(
                f"{browser} made no PDF of {page} ({type(error).__name__}); "
                "the page is there: print it from any browser."
            ) from error
    path = page.with_suffix(".pdf")
    write_whole(path, made)
    return path
