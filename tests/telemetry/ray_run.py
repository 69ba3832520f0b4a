"""Roll the window argv[1] up on a Ray of two workers, one of which is killed on the way.

With a process id, an address and a number, on the Ray at the address, whose workers descend from
the process, until so many pieces are made: there this process is killed, too.
"""

import os
import signal
import sys
from pathlib import Path

from vllm_capacity.figures.rolled_up import roll_up
from vllm_capacity.telemetry.on_ray import ray_workers
from vllm_capacity.telemetry.window import open_window


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def workers_of(pid: int) -> list[int]:
    """Ray's workers that descend from a process: children of its children."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            title = (folder / "cmdline").read_bytes()
            if title.startswith(b"ray::_") and parent(parent(int(folder.name))) == pid:
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def main(path: str, head: str = "", address: str = "", last: str = "") -> None:
    killed: list[int] = []

    def kill(done: int, of: int) -> None:
        if done >= 2 and not killed:
            killed.extend(workers_of(int(head or os.getpid()))[:1])
            for pid in killed:
                os.kill(pid, signal.SIGKILL)
        if last and done >= int(last) and killed:
            os.kill(os.getpid(), signal.SIGKILL)

    with ray_workers(address or None, 2, {}) as workers:
        done = roll_up(open_window(path), workers, progress=kill, rows_per_piece=1)
    print(done.pieces, done.made, len(killed))


if __name__ == "__main__":
    main(*sys.argv[1:])
