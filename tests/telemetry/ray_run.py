"""Roll the window argv[1] up on a Ray of two workers, one of which is killed on the way."""

import os
import signal
import sys
from pathlib import Path

from vllm_capacity.figures.rolled_up import roll_up
from vllm_capacity.telemetry.on_ray import ray_workers
from vllm_capacity.telemetry.window import open_window


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def own_workers() -> list[int]:
    """Ray's workers that descend from this process: children of its children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            if title.startswith(b"ray::_") and parent(parent(int(folder.name))) == os.getpid():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def main() -> None:
    killed: list[int] = []

    def kill(done: int, of: int) -> None:
        if done >= 2 and not killed:
            killed.extend(own_workers()[:1])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    with ray_workers(None, 2, {}) as workers:
        done = roll_up(open_window(sys.argv[1]), workers, progress=kill, rows_per_piece=1)
    print(done.pieces, done.made, len(killed))


if __name__ == "__main__":
    main()
