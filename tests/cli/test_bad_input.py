"""Any bad input: one line on stderr, exit code 2, nothing on stdout."""

import sys

import pytest

from vllm_capacity.cli import main

WHATIF = "whatif --model gpt-oss-20b --from-gpu A100-80GB-SXM --to-gpu L4-PCIe --input-tokens 10"


def run(monkeypatch, capsys, line):
    monkeypatch.setattr(sys, "argv", ["vllm-capacity", *line.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    result = capsys.readouterr()
    return ended.value.code, result.out, result.err


@pytest.mark.parametrize(
    ("line", "says"),
    [
        pytest.param("nosuch", "No such command 'nosuch'. Try 'vllm-capacity --help'", id="verb"),
        pytest.param("figures", "Give a window", id="figures of no window"),
        pytest.param("figures a b", "extra argument (b). Try", id="an argument too many"),
        pytest.param("figures vllm-sweep --usd-per-hour x", "not a valid float", id="a number"),
        pytest.param("figures vllm-sweep --slo-ttft inf", "a number up to", id="no end"),
        pytest.param("plan", "Give a window", id="plan of no window"),
        pytest.param("alerts", "Give a window", id="alerts of no window"),
        pytest.param("plan a --window b", "given twice: 'a', and --window 'b'", id="two windows"),
        pytest.param("alerts a --window b", "given twice", id="alerts of two windows"),
        pytest.param("report --last 3d", "add --from", id="days of no source"),
        pytest.param("report w --from http://a", "not both", id="a window, and days"),
        pytest.param(
            "report --from http://a --start 2026-01-01", "with --last", id="days by start"
        ),
        pytest.param("report --from http://a --last 9", "as a duration", id="no number of days"),
        pytest.param("report --from http://a --last 7d --keep 1d", "is shorter", id="kept short"),
        pytest.param("report --from http://a --tz Mars/X", "No time zone", id="no such zone"),
        pytest.param("report --from http://a --price nosuch", "nosuch", id="days at no price"),
        pytest.param("report --from http://a -p x=1", "no parameter 'x'", id="days: a parameter"),
        pytest.param("alerts vllm-sweep --label x", "try cluster=a", id="no label"),
        pytest.param("plan vllm-sweep --startup-seconds nan", "a number", id="start-up"),
        pytest.param("plan vllm-sweep --growth-per-hour inf", "a number", id="growth"),
        pytest.param("alerts vllm-sweep --above waiting=nan", "try waiting=20", id="threshold"),
        pytest.param("model Qwen3-8B --tokens -5", "not in the range", id="tokens"),
        pytest.param(
            f"{WHATIF} --output-tokens 9 --output-tokens-per-second 1e308",
            "a number up to 1e+12",
            id="a rate that is too large",
        ),
        pytest.param("fit nosuch.csv", "nosuch.csv", id="no such file"),
        pytest.param(
            "export vllm-sweep --to csv --out FOLDER", "name a file in it", id="a folder as a file"
        ),
        pytest.param("rules --out FOLDER", "name a file in it", id="rules: a folder as a file"),
        pytest.param("cost vllm-sweep --price 1,64", "with a point, as in 1.64", id="a comma"),
        pytest.param("cost vllm-sweep --price $1,64", "point", id="dollars with a comma"),
        pytest.param(
            "figures vllm-sweep --start 2026-11-24T04:20 --end 2026-11-24T04:05",
            "its end must lie after its start",
            id="times in the wrong order",
        ),
        pytest.param("simulate idle --to FILE/x", "File exists", id="a file as a folder"),
        pytest.param("scrape http://[::1 --for 1s --to FOLDER/x", "as a URL", id="scrape: no URL"),
        pytest.param("pull --from http://[::1 --last 1h --to x", "as a URL", id="pull: no URL"),
        pytest.param("pull --from folder --last 1h --to x", "stream of 'folder'", id="no stream"),
        pytest.param("pull --from http://a --last 9999999w --to x", "hundred years", id="long ago"),
        pytest.param("stack healthy http://[::1", "as a URL", id="healthy: no URL"),
        pytest.param("stack init --env-file FILE", "is not text", id="a binary env file"),
        pytest.param("proxy --upstream http://[::1", "as a URL", id="proxy: no URL"),
        pytest.param("proxy --upstream http://a --ca FILE", "no certificates", id="no certificate"),
        pytest.param("doctor --vllm http://[::1 --wait 0", "as a URL", id="doctor: no URL"),
        pytest.param("doctor --wait nan", "a number", id="doctor: a wait"),
        pytest.param(
            "doctor --vllm none --parseable none --collector-config FILE",
            "is not YAML",
            id="a binary configuration",
        ),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, tmp_path, line, says):
    file = tmp_path / "binary"
    file.write_bytes(b"\x93\xff\x00\n")
    file.chmod(0o600)
    line = line.replace("FILE", str(file)).replace("FOLDER", str(tmp_path))
    code, out, err = run(monkeypatch, capsys, line)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("vllm-capacity: ")
    assert says in err


def test_a_multi_line_message_is_printed_on_one_line(monkeypatch, capsys, tmp_path):
    config = tmp_path / "otel.yaml"
    config.write_text("a: [1\nb: {")
    line = "doctor --vllm none --parseable none --collector-config"
    code, _, err = run(monkeypatch, capsys, f"{line} {config}")
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize("verb", ["plan", "alerts"])
def test_the_window_is_an_argument_or_an_option(monkeypatch, capsys, verb):
    result = []
    for line in (f"{verb} nosuch", f"{verb} --window nosuch"):
        result.append(run(monkeypatch, capsys, line))
    assert result[0] == result[1]
    assert "No window 'nosuch'" in result[0][2]


def test_a_glob_in_a_windows_name_is_a_name(monkeypatch, capsys, tmp_path, examples):
    (tmp_path / "w[1]").symlink_to(examples / "vllm-sweep")
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(monkeypatch, capsys, "alerts w[1] --over all")
    assert (code, out.count("FIRED")) == (1, 2)


def test_alerts_show_three_digits(monkeypatch, capsys):
    _, out, _ = run(monkeypatch, capsys, "alerts vllm-sweep --over all")
    output = " ".join(out.split())
    assert "FIRED p99 E2E latency 44.3 s above 10 s" in output
    assert "quiet mean KV cache usage 0.473 above 0.9" in output


@pytest.mark.parametrize("command", ["", "stack"])
def test_no_line_of_the_list_of_commands_is_cut(monkeypatch, capsys, command):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["vllm-capacity", *command.split(), "--help"])
    main()
    assert "...\n" not in capsys.readouterr().out.replace("[ARGS]...\n", "")
