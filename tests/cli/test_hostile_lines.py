"""Hostile command lines: one line on stderr, exit code 2 or 3, nothing on stdout, no bug.

A selection of those that once ended in a traceback, a hang or a figure that was wrong.
"""

import json
import os
import socket
import sys

import pytest

from vllm_capacity.cli import main

DEAD = "http://127.0.0.1:9"
WHATIF = (
    "whatif --model gpt-oss-20b --from-gpu A100-80GB-SXM --to-gpu L4-PCIe --input-tokens 10 "
    "--output-tokens 10 --output-tokens-per-second 100"
)
NOTHING = "doctor --vllm none --parseable none --wait 0"
RULE = "instance,usd_per_hour,gpus_per_engine,from,until\n"
BOMB = "- &a [x, x]\n" + "".join(
    f"- &a{i} [{', '.join([f'*a{i - 1}' if i else '*a'] * 10)}]\n" for i in range(12)
)

FILES = {
    "deep.json": "[" * 200_000,
    "deep.yaml": "[" * 5_000,
    "deep.toml": "a = " + "[" * 50_000,
    "deep.ipynb": "[" * 200_000,
    "binary.ipynb": b"\x1f\x8b\xff\x00",
    "list.ipynb": "[1, 2]",
    "tags.ipynb": json.dumps(
        {
            "cells": [
                {
                    "cell_type": "code",
                    "source": "1",
                    "metadata": {"tags": 5},
                    "outputs": [],
                    "execution_count": None,
                }
            ],
            "metadata": {"kernelspec": {"name": "x", "language": "python", "display_name": "x"}},
            "nbformat": 4,
            "nbformat_minor": 4,
        }
    ),
    "cells.ipynb": '{"cells": 5, "metadata": 5, "nbformat": 4, "nbformat_minor": 5}',
    "cell.csv": RULE + "x" * 200_000 + ",1,1,,\n",
    "early.csv": RULE + "a,1,1,0001-01-01T00:00:00+14:00,\n",
    "late.csv": RULE + "a,1,1,,9999-12-31T23:59:59-14:00\n",
    "nan.csv": RULE + "a,1,nan,,\n",
    "price.csv": RULE + "a,1e308,1,,\n",
    "month.yaml": "- {instance: a, usd_per_hour: 1, from: 2026-13-45}\n",
    "digits.yaml": "- {instance: a, usd_per_hour: " + "9" * 6_000 + "}\n",
    "yes.yaml": "- {instance: a, usd_per_hour: true}\n",
    "nested.yaml": "- {instance: a, price: [1, 2]}\n",
    "bomb.yaml": BOMB,
    "bombs.yaml": BOMB + "- {instance: a, usd_per_hour: 1, gpus_per_engine: *a11}\n",
    "future.csv": "ts,requests\n9999-12-31T23:00:00Z,1\n",
    "past.csv": "ts,requests\n0001-01-01T00:00:00+14:00,1\n",
    "number.toml": "user = [1]\n",
}

LINES = [
    *(
        pytest.param(
            f"{verb} vllm-restart {option} {value}", 2, says, id=f"{verb} {option} {value}"
        )
        for verb, option, value, says in (
            ("figures", "--start", "''", "as a time"),
            ("cost", "--end", "''", "as a time"),
            ("plan", "--start", "0001-01-01T00:00:00+14:00", "outside the years"),
            ("figures", "--end", "9999-12-31T23:59:59-14:00", "outside the years"),
            ("figures", "--usd-per-hour", "1.7976931348623157e308", "a number up to"),
            ("figures", "--usd-per-hour", "1e9", "at most 1,000,000 USD"),
            ("figures", "--gpus-per-engine", "nan", "a number up to"),
            ("figures", "--gpus-per-engine", "1e9", "GPUs per engine"),
            ("plan", "--demand", "1e308", "a number up to"),
            ("plan", "--demand", "1e-320", "must be 0"),
            ("plan", "--headroom", "nan", "a number"),
            ("plan", "--gpu", "''", "No GPU"),
            ("plan", "--spares", "9" * 400, "not in the range"),
            ("alerts", "--over", "999999999999w", "hundred years"),
        )
    ),
    *(
        pytest.param(f"cost vllm-restart --fleet FOLDER/{name}", 2, says, id=f"fleet: {name}")
        for name, says in (
            ("cell.csv", "is not CSV"),
            ("early.csv", "outside the years"),
            ("late.csv", "outside the years"),
            ("nan.csv", "gpus_per_engine must be above 0"),
            ("price.csv", "rule 1: The price per GPU-hour"),
            ("month.yaml", "is not YAML"),
            ("digits.yaml", "is not YAML"),
            ("yes.yaml", "must be a number"),
            ("nested.yaml", "price must be one value"),
            ("bomb.yaml", "must be a list of rules"),
            ("bombs.yaml", "must be a list of rules"),
            ("deep.yaml", "nested too deeply"),
            ("pipe.yaml", "pipe, socket or device"),
            ("socket", "pipe, socket or device"),
            ("folder.yaml", "Is a directory"),
        )
    ),
    pytest.param("cost vllm-restart --fleet /dev/zero", 2, "device", id="a device without end"),
    pytest.param("cost vllm-restart --fleet ''", 2, "must not be empty", id="no name"),
    *(
        pytest.param(
            f"report --notebook FOLDER/{name} --window x --out FOLDER/out", 2, says, id=name
        )
        for name, says in (
            ("binary.ipynb", "is not a Jupyter notebook"),
            ("deep.ipynb", "is not a Jupyter notebook"),
            ("list.ipynb", "is not a Jupyter notebook"),
            ("cells.ipynb", "is not a Jupyter notebook"),
            ("tags.ipynb", "cannot be read"),
            ("pipe.yaml", "There is no notebook"),
        )
    ),
    pytest.param("fit FOLDER/pipe.yaml", 2, "pipe, socket or device", id="fit: a pipe"),
    pytest.param("fit ~", 2, "No such file", id="fit: a home that no shell made a path"),
    pytest.param("fit FOLDER/deep.json", 2, "is not JSON", id="fit: nested without end"),
    pytest.param("forecast FOLDER/future.csv --column requests", 2, "outside", id="year 9999"),
    pytest.param("forecast FOLDER/past.csv --column requests", 2, "outside", id="year 1"),
    pytest.param("forecast FOLDER/pipe.yaml --column requests", 2, "pipe", id="forecast: a pipe"),
    pytest.param("scrape --from FOLDER/pipe.yaml --to FOLDER/w", 2, "pipe", id="scrape: a pipe"),
    pytest.param(
        "scrape a:1 --every 0.001ms --to FOLDER/w", 2, "shortest interval", id="no interval"
    ),
    pytest.param("scrape a:1 --for '' --to FOLDER/w", 2, "as a duration", id="for: empty"),
    pytest.param("scrape a:1 --for 1s --to s3://b/w", 2, "not a valid path", id="to a bucket"),
    pytest.param("simulate idle --to s3://b/w", 2, "not a valid path", id="simulate: to a bucket"),
    pytest.param("scrape a..b --for 1s --to FOLDER/w", 2, "as a URL", id="scrape: no host"),
    pytest.param(f"model Qwen3-8B --gpu L4-PCIe --tokens {10**15}", 2, "range", id="tokens"),
    pytest.param(f"{WHATIF} --gpus {'9' * 400}", 2, "1 to", id="GPUs of 400 digits"),
    pytest.param(f"{WHATIF} --output-tokens-per-second 1e-320", 2, "must be 0", id="denormal"),
    pytest.param(f"{NOTHING} --collector-config FOLDER/deep.yaml", 2, "YAML", id="doctor: deep"),
    pytest.param(f"{NOTHING} --collector-config FOLDER/month.yaml", 2, "YAML", id="doctor: a date"),
    pytest.param(f"{NOTHING} --collector-config FOLDER/pipe.yaml", 2, "pipe", id="doctor: a pipe"),
    pytest.param(f"{NOTHING} --collector http://u:p@h/", 2, "name or address", id="no Collector"),
    pytest.param(f"{NOTHING} --collector h --collector-health-port 0", 2, "port 0", id="no port"),
    pytest.param(f"{NOTHING} --stream ../x", 2, "not a stream name", id="doctor: no stream"),
    pytest.param("stack init --stream ''", 2, "not a stream name", id="init: no stream"),
    pytest.param("stack init --env-file FOLDER/open", 2, "others can read it", id="an open .env"),
    pytest.param(f"stack init --parseable {DEAD}", 3, "no answer", id="a Parseable that is dead"),
    pytest.param("pull --from ftp://h --stream s --to FOLDER/w", 2, "give http://", id="pull: ftp"),
    pytest.param(
        f"pull --from {DEAD} --last 1h --start '' --to w", 2, "either", id="an empty start"
    ),
    pytest.param(
        f"pull --from {DEAD} --start 9999-12-30 --end 9999-12-31 --to w", 2, "outside", id="the end"
    ),
    pytest.param(
        f"traces --from {DEAD} --profile FOLDER/deep.toml --last 1h", 2, "is not TOML", id="TOML"
    ),
    pytest.param(
        f"traces --from {DEAD} --profile FOLDER/number.toml --last 1h", 2, "text as user", id="user"
    ),
    pytest.param("pull --from s3://b/x --stream s --to FOLDER/w", 2, "AWS_ACCESS", id="no S3 key"),
    pytest.param("proxy --upstream x --listen 127.0.0.1:0", 2, "as a URL", id="no upstream"),
    pytest.param(f"proxy --upstream {DEAD} --listen ..:1", 2, "Cannot listen", id="no address"),
    pytest.param(f"proxy --upstream {DEAD} --listen h:²", 2, "HOST:PORT", id="a power of a port"),
    pytest.param(f"proxy --upstream {DEAD} --ca FOLDER", 2, "Cannot read", id="no certificates"),
    pytest.param(f"scrape {DEAD} --to '' --for 1s", 2, "exists already", id="no name of a window"),
    pytest.param(f"scrape {DEAD} --to / --for 1s", 2, "exists already", id="the root as a window"),
    *(
        pytest.param(f"{line} http://user:sekret@h/", 2, "h", id=f"{line} a URL for a path")
        for line in ("figures vllm-restart --fleet", "forecast", "fit")
    ),
    pytest.param("fit http://user:sek/ret@h/", 2, "h", id="a password with a slash"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o600)
    (tmp_path / "open").write_text("PARSEABLE_ROOT_USER=u\n")
    (tmp_path / "open").chmod(0o644)
    (tmp_path / "folder.yaml").mkdir()
    os.mkfifo(tmp_path / "pipe.yaml")
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        yield tmp_path


@pytest.mark.parametrize(("line", "code", "says"), LINES)
def test_a_hostile_command_line_gets_a_one_line_error(
    monkeypatch, capsys, folder, line, code, says
):
    monkeypatch.setenv("PARSEABLE_ROOT_USER", "u")
    monkeypatch.setenv("PARSEABLE_ROOT_PASSWORD", "p")
    if "--env-file" in line:
        monkeypatch.delenv("PARSEABLE_ROOT_PASSWORD")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", str(folder))
    words = ["" if word == "''" else word for word in line.replace("FOLDER", str(folder)).split()]
    monkeypatch.setattr(sys, "argv", ["vllm-capacity", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (code, "", 1), err
    assert says in err
    assert "sek" not in err
    assert len(err) < 3_000


def test_a_lone_surrogate_in_saved_text_does_not_reach_the_terminal(monkeypatch, capsys, tmp_path):
    path = tmp_path / "points.json"
    path.write_text(json.dumps({"\ud800": 1}))
    monkeypatch.setattr(sys, "argv", ["vllm-capacity", "fit", str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert (ended.value.code, capsys.readouterr().err.count("\n")) == (2, 1)
