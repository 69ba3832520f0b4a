"""`vllm-capacity pull`: where the credentials come from, and what a person gets to read."""

import json
import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tests.standin.exports import counter, export
from tests.standin.server import RECORDED, Standin, User
from vllm_capacity.cli import cli
from vllm_capacity.cli.pull import requested_range
from vllm_capacity.errors import InputError
from vllm_capacity.live.access import read_settings
from vllm_capacity.timerange import parse_instant

SECRET = "s3cret-word"
NOW = parse_instant("2026-11-24T08:00:00Z")


@pytest.fixture(scope="module")
def url():
    with Standin(users={"planner": User(SECRET, "reader", ("s",))}) as standin:
        body = export(counter("vllm:generation_tokens_total", NOW, 3.0))
        standin.ingest("s", "/v1/metrics", body, arrived=NOW)
        yield standin.url


def run(*arguments, **environment):
    """The command as a process of its own: what it prints, writes and returns is what counts."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PARSEABLE_")}
    return subprocess.run(
        [sys.executable, "-m", "vllm_capacity", *arguments],
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def invoke(*arguments, **environment):
    blank = {f"PARSEABLE_{name}": "" for name in ("URL", "USER", "PASSWORD", "API_KEY")}
    return CliRunner().invoke(cli, ["pull", *arguments], env={**blank, **environment})


HOUR = ("--start", "2026-11-24T07:30:00Z", "--end", "2026-11-24T08:30:00Z")


@pytest.fixture
def profile(tmp_path, url):
    path = tmp_path / "parseable.toml"
    path.write_text(f'url = "{url}"\nuser = "planner"\npassword = "{SECRET}"\n')
    path.chmod(0o600)
    return path


def test_a_pull_uses_a_profile_and_stores_no_secret(tmp_path, profile):
    target = tmp_path / "w"
    done = invoke("--stream", "s", *HOUR, "--to", str(target), "--profile", str(profile))
    assert (done.exit_code, done.stdout.strip()) == (0, str(target))
    written = b"".join(path.read_bytes() for path in target.rglob("*") if path.is_file())
    assert SECRET.encode() not in written


@pytest.mark.parametrize(
    ("end", "message"),
    [
        pytest.param(
            "2026-11-24T08:30:00Z", "asked for until 2026-11-24T08:30:00Z", id="half an hour"
        ),
        pytest.param("2026-11-24T08:00:10Z", "", id="an end that was reached"),
    ],
)
def test_a_pull_whose_end_was_not_reached_says_so(tmp_path, profile, end, message):
    asked = ("--stream", "s", "--start", "2026-11-24T07:30:00Z", "--end", end)
    done = invoke(*asked, "--to", str(tmp_path / "w"), "--profile", str(profile))
    assert done.exit_code == 0
    assert done.stderr.startswith(message)
    assert bool(done.stderr) == bool(message)


def test_a_pull_with_the_settings_of_the_environment(tmp_path, url):
    environment = {"PARSEABLE_URL": url, "PARSEABLE_USER": "planner", "PARSEABLE_PASSWORD": SECRET}
    target = tmp_path / "w"
    done = invoke("--stream", "s", *HOUR, "--to", str(target), **environment)
    assert done.exit_code == 0, done.output
    note = json.loads((target / "window.json").read_text())
    assert (note["grain"], note["stream"], note["origin"]) == ("scrape", "s", url)


@pytest.mark.parametrize(
    ("options", "grain"),
    [
        pytest.param((), "scrape", id="a short range is pulled whole"),
        pytest.param(("--downsampled",), "minute", id="downsampled on request"),
        pytest.param(("--thinned",), "minute", id="by the former name of the option"),
    ],
)
def test_the_resolution(tmp_path, profile, options, grain):
    target = tmp_path / "w"
    done = invoke("--stream", "s", *HOUR, "--to", str(target), "--profile", str(profile), *options)
    assert done.exit_code == 0, done.output
    assert json.loads((target / "window.json").read_text())["grain"] == grain


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(
            ("--from", "http://me:word@127.0.0.1:1", "--stream", "s", "--last", "1h"),
            "seen by everyone",
            id="a password in the URL",
        ),
        pytest.param(
            ("--from", "http://127.0.0.1:1", "--stream", "s", "--last", "1h"),
            "No credentials",
            id="no credentials",
        ),
        pytest.param(("--stream", "s", "--last", "1h"), "PARSEABLE_URL", id="no origin"),
        pytest.param(("--from", "http://127.0.0.1:1", "--stream", "s"), "--last 24h", id="no time"),
        pytest.param(
            ("--from", "x", "--stream", "s", "--last", "1h", *HOUR), "either --last", id="two times"
        ),
        pytest.param(
            ("--from", str(RECORDED / "store")), "--stream", id="a store without a stream"
        ),
    ],
)
def test_what_cannot_be_used_is_one_line_and_leaves_nothing(tmp_path, arguments, says):
    done = invoke(*arguments, "--to", str(tmp_path / "w"))
    assert isinstance(done.exception, InputError)
    assert says in str(done.exception)
    assert not (tmp_path / "w").exists()


def test_a_wrong_password_ends_with_3_and_a_line_without_the_password(tmp_path, url):
    done = run(
        *("pull", "--stream", "s", *HOUR, "--to", str(tmp_path / "w")),
        PARSEABLE_URL=url,
        PARSEABLE_USER="planner",
        PARSEABLE_PASSWORD="not-" + SECRET,
    )
    assert done.returncode == 3
    assert "refused the user or the password" in done.stderr
    assert done.stderr.count("\n") == 1
    assert SECRET not in done.stderr + done.stdout


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [
        pytest.param('user = "x"', 0o644, "chmod 600", id="others may read it"),
        pytest.param("user: x", 0o600, "not TOML", id="it is something else"),
        pytest.param('token = "x"', 0o600, "has token", id="a setting we do not know"),
        pytest.param(None, None, "Cannot read", id="it is not there"),
    ],
)
def test_a_profile_that_cannot_be_used(tmp_path, text, mode, says):
    path = tmp_path / "profile.toml"
    if text is not None:
        path.write_text(text)
        path.chmod(mode)
    with pytest.raises(InputError, match=says):
        read_settings({}, path)


def test_the_environment_wins_over_the_profile(profile):
    found = read_settings({"PARSEABLE_USER": "other", "PARSEABLE_PASSWORD": ""}, profile)
    assert (found["user"], found["password"]) == ("other", SECRET)


def test_the_last_hour_ends_now():
    time_range = requested_range(None, None, "1h", now=NOW)
    assert (time_range.end, time_range.seconds) == (NOW, 3600)
