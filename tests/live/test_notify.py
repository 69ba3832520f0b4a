"""Notifications by apprise to a real receiver: once when an alert fires, once when it resolves."""

import shutil
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from serving import receiver

from tests.cli import command_line
from vllm_capacity.alerts import RULES, Alert, Observed
from vllm_capacity.errors import InputError, SourceError
from vllm_capacity.live.notify import notify, recipients

NOW = datetime(2026, 11, 27, 6, tzinfo=UTC)
SLOW = Alert(RULES[0], "fired", Observed(12.0))
FAST = Alert(RULES[0], "quiet", Observed(2.0))
UNKNOWN = Alert(RULES[0], "unknown", Observed(None, reason="no samples"))
FULL = Alert(RULES[2], "fired", Observed(0.97))
SECRET = "t0ken"


@pytest.fixture
def record_path(tmp_path) -> Path:
    return tmp_path / "sent.json"


def send(url: str, record_path: Path, *found: Alert, labels: dict[str, str] | None = None) -> None:
    notify(
        recipients([url], {}),
        found,
        labels=labels or {},
        subject="monday, up to noon",
        record=record_path,
        now=NOW,
        pause=lambda seconds: None,
    )


def test_firing_and_resolving_are_each_notified_once(record_path):
    with receiver() as (url, got):
        for outcome in (SLOW, SLOW, UNKNOWN, SLOW, FAST, FAST, UNKNOWN, SLOW):
            send(url, record_path, outcome)
    assert [each["title"] for each in got] == [
        "vLLM: 1 firing",
        "vLLM: 1 resolved",
        "vLLM: 1 firing",
    ]
    assert [each["type"] for each in got] == ["failure", "success", "failure"]
    assert got[0]["message"].splitlines() == [
        "FIRING: p99 E2E latency: 12 s; fires above 10 s",
        "monday, up to noon",
    ]


def test_one_message_for_all_that_is_new(record_path):
    with receiver() as (url, got):
        send(url, record_path, SLOW)
        send(url, record_path, FAST, FULL, labels={})
    assert got[1]["title"] == "vLLM: 1 firing, 1 resolved"


def test_alerts_of_other_labels_are_others(record_path):
    with receiver() as (url, got):
        for cluster in ("a", "b", "a"):
            send(url, record_path, SLOW, labels={"cluster": cluster})
        send(url, record_path, FAST, labels={"cluster": "b"})
    assert [each["message"].splitlines()[-1] for each in got] == [
        "monday, up to noon; cluster=a",
        "monday, up to noon; cluster=b",
        "monday, up to noon; cluster=b",
    ]


def test_a_busy_receiver_is_notified_again(record_path):
    with receiver(503, 500) as (url, got):
        send(url, record_path, SLOW)
        send(url, record_path, SLOW)
    assert [each["status"] for each in got] == [503, 500, 200]


def test_a_failing_recipient_does_not_block_others_and_is_retried_in_the_next_run(record_path):
    with receiver(*[500] * 4) as (bad, missed), receiver() as (good, got):
        both = recipients([bad, good], {})
        order = {"labels": {}, "subject": "s", "record": record_path, "now": NOW}
        says = r"json:// \(--notify number 1\) did not accept the alerts"
        with pytest.raises(SourceError, match=says):
            notify(both, [SLOW], **order, pause=lambda seconds: None)
        notify(both, [SLOW], **order, pause=lambda seconds: None)
    assert [len(got), missed[-1]["status"]] == [1, 200]


def test_no_address_is_kept_or_shown(record_path, capfd):
    with receiver(*[500] * 4) as (url, _):
        address = f"{url}/${{TOKEN}}"
        (to,) = recipients([address], {"TOKEN": SECRET})
        order = {"labels": {}, "subject": "s", "record": record_path, "now": NOW}
        with pytest.raises(SourceError) as failed:
            notify([to], [SLOW], **order, pause=lambda seconds: None)
        notify([to], [SLOW], **order, pause=lambda seconds: None)
    shown = capfd.readouterr()
    everything = [
        repr(to),
        to.shown,
        str(failed.value),
        shown.out,
        shown.err,
        record_path.read_text(),
    ]
    assert [text for text in everything if SECRET in text or url in text] == []


@pytest.mark.parametrize(
    ("url", "says"),
    [
        pytest.param(
            "nonsense://x/s3cret", r"a scheme that apprise does not know \(nonsense", id="no scheme"
        ),
        pytest.param("s3cret", "is not a URL", id="no URL"),
        pytest.param(
            "slack://s3cret", "a scheme that apprise does not know", id="a service's URL cut short"
        ),
        pytest.param(
            "json://${NONE}/s3cret", "the environment variable NONE is not set", id="not set"
        ),
        pytest.param(
            "mailto://me:s3cret@example.com", "contains a password", id="a password in it"
        ),
        pytest.param("file:none", "Cannot read none", id="no file"),
    ],
)
def test_what_is_no_recipient_is_refused_without_showing_it(url, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=says) as refused:
        recipients([url], {})
    assert "s3cret" not in str(refused.value)


def test_a_file_of_addresses_must_be_private(tmp_path):
    path = tmp_path / "urls"
    path.write_text("# on call\njson://h/a\n\njson://h/${TOKEN}\n")
    path.chmod(0o644)
    with pytest.raises(InputError, match="others can read it"):
        recipients([f"file:{path}"], {})
    path.chmod(stat.S_IRUSR)
    found = recipients([f"file:{path}"], {"TOKEN": SECRET})
    assert [each.address for each in found] == ["json://h/a", f"json://h/{SECRET}"]


def test_a_damaged_record_file_is_reported(record_path):
    record_path.write_text("{")
    with receiver() as (url, _), pytest.raises(InputError, match=r"is damaged\. Remove it"):
        send(url, record_path, SLOW)


def test_the_command_takes_its_recipients_from_the_settings(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with receiver() as (url, got):
        monkeypatch.setenv("HOOK", SECRET)
        Path("vllm-capacity.toml").write_text(
            f"[alerts]\nover = 'all'\nnotify = ['{url}/${{HOOK}}']\nlabels = ['cluster=a']\n"
        )
        assert command_line.run(monkeypatch, capsys, "config", "check")[0] == 0
        for _ in range(2):
            code, out, err = command_line.run(monkeypatch, capsys, "alerts", "vllm-sweep")
            assert (code, SECRET in out + err) == (1, False)
    (message,) = got
    assert "FIRING: p95 TTFT" in message["message"]
    assert message["message"].splitlines()[-1].endswith("Z; cluster=a")
    assert Path("vllm-capacity-sent.json").is_file()


def test_without_a_window_the_newest_day_is_used(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, _, err = command_line.run(monkeypatch, capsys, "alerts")
    assert (code, "Give a window" in err) == (2, True)
    sweep = Path(__file__).parents[2] / "data/examples/vllm-sweep"
    for day in ("2026-11-26", "2026-11-27"):
        shutil.copytree(sweep, Path("windows", day))
    with receiver() as (url, got):
        words = ["alerts", "--over", "all", "--notify", url]
        assert command_line.run(monkeypatch, capsys, *words)[0] == 1
    assert got[0]["message"].splitlines()[-1].startswith("2026-11-27, up to")
