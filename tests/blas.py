"""How linear algebra runs in tests; import this before NumPy."""

import os
from pathlib import Path

KEPT_KERNELS = "Haswell"
"""The kernels of OpenBLAS that made the last bits of the answers kept (tests/kept)."""

# Idle threads spin, which costs the other workers ten times the work on matrices as small as ours.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Without this, OpenBLAS takes the newest kernels for the processor it finds, and last bits differ.
_CPU = Path("/proc/cpuinfo")
if _CPU.exists() and " avx2 " in _CPU.read_text():
    os.environ.setdefault("OPENBLAS_CORETYPE", KEPT_KERNELS)

has_kept_kernels = os.environ.get("OPENBLAS_CORETYPE") == KEPT_KERNELS
