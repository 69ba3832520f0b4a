"""The most frequent commands answer at once: help imports nothing that computes."""

import subprocess
import sys

import click
import pytest

from vllm_capacity.cli import cli

HEAVY = ("polars", "duckdb", "numpy", "scipy", "jsonschema", "httpx", "altair", "rich")
IMPORTED = "import sys\n{code}\nprint(*[name for name in {heavy} if name in sys.modules])"


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import vllm_capacity", id="the package"),
        pytest.param("import vllm_capacity.assumptions", id="assumptions"),
        pytest.param(
            "from vllm_capacity.cli import cli\n"
            "assert 'whatif' in cli.get_help(__import__('click').Context(cli))",
            id="--help",
        ),
        *(
            pytest.param(
                "from click.testing import CliRunner\nfrom vllm_capacity.cli import cli\n"
                f"assert CliRunner().invoke(cli, ['{verb}', '--help']).exit_code == 0",
                id=f"{verb} --help",
            )
            for verb in ("figures", "cost", "plan", "alerts")
        ),
    ],
)
def test_nothing_heavy_is_imported(code):
    program = IMPORTED.format(code=code, heavy=HEAVY)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


def test_the_listed_help_is_each_verbs_own():
    context = click.Context(cli)
    page = cli.get_help(context)
    names = cli.list_commands(context)
    width = max(map(len, names)) + 2
    for name in names:
        command = cli.get_command(context, name)
        assert f"{name:<{width}}{command.get_short_help_str(200)}" in page, name


def test_a_terminal_table_imports_no_schema_library():
    program = IMPORTED.format(code="import vllm_capacity.render.terminal", heavy=("jsonschema",))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, [])


def test_laying_out_a_page_imports_nothing_that_computes():
    heavy = ("polars", "duckdb", "numpy", "altair", "rich")
    program = IMPORTED.format(code="import vllm_capacity.cli.report", heavy=heavy)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, [])


def test_what_opens_a_window_waits_for_no_library_that_it_does_not_use():
    heavy = ("scipy", "altair", "jsonschema")
    program = IMPORTED.format(code="import vllm_capacity as vc\nvc.open", heavy=heavy)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, [])


def test_a_bill_of_a_small_window_imports_no_database_optimizer_or_http_client():
    code = (
        "from click.testing import CliRunner\nfrom vllm_capacity.cli import cli\n"
        "words = ['figures', 'vllm-sweep', '--usd-per-hour', '1', '--json']\n"
        "assert CliRunner().invoke(cli, words).exit_code == 0"
    )
    heavy = ("duckdb", "scipy.optimize", "scipy.stats", "altair", "httpx")
    program = IMPORTED.format(code=code, heavy=heavy)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, [])


def test_nothing_is_searched_for_cycles_at_exit():
    program = (
        "import atexit, gc, sys\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 0))\n"
        "sys.argv = ['vllm-capacity', 'windows']\n"
        "from vllm_capacity.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()[-1:]) == (0, ["True"])
