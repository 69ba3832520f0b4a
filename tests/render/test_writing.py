import subprocess
import sys
from pathlib import Path

import pytest

from vllm_capacity.errors import SourceError
from vllm_capacity.render.report.files import only_writer, write_whole


def test_file_is_replaced_whole_and_readable(tmp_path: Path):
    path = tmp_path / "new" / "page.html"
    write_whole(path, "old")
    write_whole(path, "néw")
    left = [each.name for each in path.parent.iterdir()]
    assert (path.read_text(encoding="utf-8"), path.stat().st_mode & 0o777, left) == (
        "néw",
        0o644,
        ["page.html"],
    )


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path):
    path = tmp_path / "page.html"
    write_whole(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(path, "half \ud800")
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("page.html", "old")]


def test_a_second_writer_is_refused_until_the_first_has_finished(tmp_path: Path):
    refused = pytest.raises(SourceError, match="nothing was done")
    with only_writer(tmp_path), refused, only_writer(tmp_path):
        pass
    with only_writer(tmp_path):
        pass


def test_killed_writer_leaves_no_lock_and_no_part_of_a_page(tmp_path: Path):
    program = (
        "import os, sys, pathlib\n"
        "from vllm_capacity.render.report.files import only_writer\n"
        "with only_writer(pathlib.Path(sys.argv[1])):\n"
        "    pathlib.Path(sys.argv[1], '.page.html.x.vllm-capacity').touch()\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    with only_writer(tmp_path):
        assert killed.returncode == -9
    assert list(tmp_path.iterdir()) == []
