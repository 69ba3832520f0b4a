"""Import jsonschema while `rfc3987_syntax` looks absent, which saves most of a second.

jsonschema tries to import that Lark grammar for an optional check of IRI formats. It comes with
JupyterLab, and burdens every first import of altair, nbformat and papermill. Nothing here checks
IRIs; afterwards the module can be imported as before. Whatever imports one of the three imports
this module first.
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
