"""The settings file: errors and their places, precedence, what `init` writes."""

import json
from pathlib import Path

import click
import command_line
import pytest
from click.testing import CliRunner

from vllm_capacity.cli.config import settings_text
from vllm_capacity.cli.options.settings import (
    SECTIONS,
    AlertSettings,
    SourceSettings,
    setting_options,
    taken,
)
from vllm_capacity.cli.options.settings_file import read_settings_file

USER = "[price]\nusd_per_hour = 2.0\n[slo]\nttft_p95_seconds = 1.5\n"


@pytest.fixture
def run(monkeypatch, capsys, tmp_path, examples):
    """A command line in its own folder: its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    for name in ("PARSEABLE_URL", "PROMETHEUS_URL", "TZ", "VLLM_CAPACITY_SETTINGS"):
        monkeypatch.delenv(name, raising=False)

    def ran(line):
        sweep = str(examples / "vllm-sweep")
        words = [word.replace("SWEEP", sweep).replace("^", " ") for word in line.split()]
        return command_line.run(monkeypatch, capsys, *words)

    return ran


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        pytest.param("[price\n", 1, "Expected", id="no TOML"),
        pytest.param("a = [", 1, "Invalid value", id="no TOML up to its end"),
        pytest.param("\n[sorce]\nfrom = 1\n", 2, "did you mean source", id="a table misspelt"),
        pytest.param("x = 1\n", 1, "no table 'x'", id="a key outside of all tables"),
        pytest.param("[days]\n\nkep = '3d'\n", 3, "did you mean keep", id="a key misspelt"),
        pytest.param("[price]\nusd_per_hour = 'x'\n", 2, "must be a number, not text", id="a type"),
        pytest.param("[days]\ntoday = 1\n", 2, "must be true or false", id="no truth"),
        pytest.param("price.usd_per_hour = true\n", 1, "must be a number", id="a dotted key"),
        pytest.param("[price]\nprice='no such'\n", 2, "no such", id="a price that there is not"),
        pytest.param("[price]\nusd_per_hour=1e13\n", 2, "a number up to", id="a huge price"),
        pytest.param(
            "[price]\nusd_per_hour=1\nfleet='f.csv'\n", 3, "Cannot read the mapping", id="no file"
        ),
        pytest.param("[slo]\nitl_p95_seconds=-1\n", 2, "above 0 seconds", id="a target below 0"),
        pytest.param("[days]\nlast='1y'\n", 2, "as a duration", id="no duration"),
        pytest.param("[days]\ntime_zone='Mars/X'\n", 2, "No time zone", id="no zone"),
        pytest.param("[source]\nfrom='http://u:p@h'\n", 2, "A password in", id="a password"),
        pytest.param("[source]\nstream='a b'\n", 2, "not a stream name", id="no stream"),
        pytest.param("[hardware]\ngpu='Z80'\n", 2, "Z80", id="a GPU that there is not"),
        pytest.param("[alerts]\nabove=['x=1']\n", 2, "No alert is called 'x'", id="no alert"),
    ],
)
def test_config_check_locates_errors(run, text, line, says):
    Path("vllm-capacity.toml").write_text(text)
    code, out, err = run("config check")
    assert (code, out) == (2, "")
    assert f"vllm-capacity.toml:{line}: " in err
    assert says in err


def test_config_check_lists_every_error(run):
    Path("vllm-capacity.toml").write_text("[price]\nusd_per_hour = 'x'\n[slo]\nttft = 1\n")
    assert len(run("config check")[2].splitlines()) == 2


def test_a_price_given_twice_is_rejected_at_the_second(run):
    row = "A100-80GB-PCIe RunPod secure, on-demand 2025"
    Path("vllm-capacity.toml").write_text(f"[price]\nusd_per_hour = 1\nprice = '{row}'\n")
    assert "toml:3: the price is given by usd_per_hour and price" in run("config check")[2]


@pytest.mark.parametrize(
    ("options", "basis"),
    [
        pytest.param("", "$2/GPU-hour", id="the file"),
        pytest.param("--usd-per-hour 3", "$3/GPU-hour", id="the command line wins"),
        pytest.param(
            "--price A100-80GB-PCIe^RunPod^secure,^on-demand^2025",
            "A100-80GB-PCIe RunPod",
            id="and puts another way of saying it out",
        ),
    ],
)
def test_figures_take_their_price_from(run, options, basis):
    Path("vllm-capacity.toml").write_text(USER)
    code, out, err = run(f"figures SWEEP --json {options}")
    assert (code, err) == (0, "")
    answer = json.loads(out)
    assert basis in json.dumps(answer["cost"])
    assert answer["slo"]["ttft_attainment"]["mid"] is not None


@pytest.mark.parametrize(
    ("words", "origin", "stream", "is_full"),
    [
        pytest.param([], "http://a", "s", None, id="the file"),
        pytest.param(["--full"], "http://a", "s", True, id="one option beside the file"),
        pytest.param(["--from", "http://b"], "http://b", None, None, id="another source whole"),
        pytest.param(
            ["--from", "http://b", "--stream", "t"], "http://b", "t", None, id="and its stream"
        ),
    ],
)
def test_a_source_comes_from_the_file_or_the_command_line(words, origin, stream, is_full):
    seen = []
    options = setting_options(SourceSettings)
    command = click.command(options(lambda **given: seen.append(taken(SourceSettings, given))))
    of_file = {"origin": "http://a", "stream": "s"}
    command.main(words, standalone_mode=False, default_map=of_file)
    assert seen == [SourceSettings(origin, stream, is_full)]


@pytest.mark.parametrize("option", ["--sent", "--told"])
def test_a_former_option_and_its_key_still_work(option, tmp_path):
    @click.command()
    @setting_options(AlertSettings)
    def verb(**given):
        click.echo(taken(AlertSettings, given).sent)

    found = CliRunner().invoke(verb, [option, "record.json"])
    assert found.output == "record.json\n"
    path = tmp_path / "settings.toml"
    path.write_text(f"[alerts]\n{option.removeprefix('--')} = 'record.json'\n")
    read = read_settings_file(path)
    assert (read.values, read.problems) == ({"sent": tmp_path / "record.json"}, ())


def test_a_broken_file_only_stops_what_reads_it(run):
    Path("vllm-capacity.toml").write_text("[prise]\n")
    code, _, err = run("figures SWEEP --json")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "vllm-capacity.toml:1: there is no table 'prise'; did you mean price?" in err
    assert run("facts gpus")[0] == 0


def test_settings_of_another_name_and_folder(run, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.toml").write_text("[price]\nfleet = 'f.csv'\n")
    (tmp_path / "there" / "f.csv").write_text("instance,usd_per_hour\n*,7\n")
    code, out, _ = run("--settings there/mine.toml figures SWEEP --json")
    assert code == 0
    assert "$7/GPU-hour" in json.dumps(json.loads(out)["cost"])


def test_init_writes_what_it_was_given_and_found(run):
    Path("fleet.csv").write_text("instance,usd_per_hour\n*,7\n")
    code, out, _ = run("init --from http://127.0.0.1:9 --keep 30d --slo-ttft 2")
    assert code == 0
    assert "fleet: fleet.csv (found here)" in out
    assert run("config check")[0] == 0
    found = read_settings_file(Path("vllm-capacity.toml")).values
    expected = {"origin": "http://127.0.0.1:9", "keep": "30d", "fleet": Path("fleet.csv")}
    assert expected.items() <= found.items()
    assert found["ttft_p95_seconds"] == 2
    assert "exists already" in run("init --from http://127.0.0.1:9")[2]


def test_every_default_in_the_file_is_one_that_can_be_read(tmp_path):
    lines = settings_text({}).splitlines()
    defaults = [line.removeprefix("# ") for line in lines if line.startswith("[") or " = " in line]
    (tmp_path / "all.toml").write_text("\n".join(defaults))
    found = read_settings_file(tmp_path / "all.toml", deep=True)
    assert [found.described(problem) for problem in found.problems] == []
    assert set(found.values) >= {"windows", "out", "zone", "gpus_per_engine", "over", "has_today"}
    assert len(SECTIONS) == 10
