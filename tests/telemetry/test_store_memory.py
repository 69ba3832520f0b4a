"""The memory of making a window grows with the series, and with nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")
if not Path("/proc/self/status").exists():
    pytest.skip("needs /proc to read a peak of memory", allow_module_level=True)

MANY_SERIES = """
import resource, sys
from pathlib import Path
from vllm_capacity.telemetry.rows import RowBuffer, SeriesKey
from vllm_capacity.telemetry.store import write_window

resource.setrlimit(resource.RLIMIT_DATA, (4_000_000_000, 4_000_000_000))  # fail, do not swap
buffer = RowBuffer()
for scrape in range(2):
    ts_us = 1_795_492_800_000_000 + scrape * 2_000_000
    buffer.scrape("vllm", ts_us, is_up=True, seconds=0.1)
    for number in range(100_000):
        key = SeriesKey("vllm:request_success_total", "counter", "vllm", "0", f"model-{number}")
        buffer.sample(buffer.series(key, exposed=key.metric), ts_us, float(scrape + number))
write_window(Path(sys.argv[1]), buffer.rows(), {})
# Not ru_maxrss: a child begins with its parent's.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024)
"""


def test_two_scrapes_of_100_000_series_take_less_than_a_gigabyte(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", MANY_SERIES, tmp_path / "w"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-500:]
    assert int(done.stdout) < 1_000_000_000
