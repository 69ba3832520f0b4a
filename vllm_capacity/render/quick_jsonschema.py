"""Imports jsonschema with `rfc3987_syntax` hidden, which saves most of a second.

jsonschema tries to import that Lark grammar for an optional check of IRI formats. JupyterLab
installs it, and it slows every first import of altair, nbformat and papermill. Nothing here checks
IRIs; afterwards the module can be imported as usual. Import this module before any of the three.
"""

from __future__ import annotations

import sys


def _import_jsonschema() -> None:
    if "jsonschema" in sys.modules or "rfc3987_syntax" in sys.modules:
        return
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    try:
        import jsonschema  # noqa: F401
    finally:
        del sys.modules["rfc3987_syntax"]


_import_jsonschema()
