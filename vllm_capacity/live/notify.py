"""Sends alerts to people through apprise: mail, Slack, Teams, PagerDuty and a hundred more.

Unlike Alertmanager, mail does not remember which alerts fire. So a file records what was sent to
each recipient: an alert is sent when it fires and when it resolves, not every night in between.
Alerts in an unknown state are not sent; they neither fire nor resolve anything.

Addresses contain secrets (a Slack URL is one). They come from the environment or from a file that
only its owner can read, and our messages, logs and files show only their scheme.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
from msgspec import Struct

from vllm_capacity.alerts import Alert
from vllm_capacity.errors import InputError, SourceError, needing_extra
from vllm_capacity.holding import workplace
from vllm_capacity.live.access import secret
from vllm_capacity.live.stack import read_secret
from vllm_capacity.sources.http import TransientError, with_retries
from vllm_capacity.timerange import iso

_VARIABLE = re.compile(r"\$\{(\w+)\}")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_PASSWORD = re.compile(r"://[^/@$]*:[^/@$]+@")
_FILE = "file:"

Notified = dict[str, dict[str, str]]
"""When each recipient (a hash of its address) was notified of each firing alert."""


@dataclass(frozen=True)
class Recipient:
    """Who is notified: the address, which is never shown, and a description that may be."""

    shown: str
    address: str = field(repr=False)

    @property
    def key(self) -> str:
        """The recipient's key in the file: a hash that does not reveal the address."""
        return hashlib.blake2b(self.address.encode(), digest_size=12).hexdigest()


class News(Struct, frozen=True):
    """What has not been sent to a recipient yet: firing alerts and resolved alerts."""

    fired: tuple[Alert, ...]
    resolved: tuple[Alert, ...]

    @property
    def title(self) -> str:
        """The title: how many alerts are firing and resolved."""
        counts = ((self.fired, "firing"), (self.resolved, "resolved"))
        return f"vLLM: {', '.join(f'{len(each)} {word}' for each, word in counts if each)}"

    def body(self, labels: Mapping[str, str], subject: str) -> str:
        """The text: one line per alert with its value and threshold, then subject and labels."""
        where = ", ".join(f"{name}={value}" for name, value in labels.items())
        lines = [f"FIRING: {one.sentence}" for one in self.fired]
        lines += [f"RESOLVED: {one.sentence}" for one in self.resolved]
        return "\n".join([*lines, "; ".join(filter(None, (subject, where)))])


def recipients(given: Sequence[str], environment: Mapping[str, str]) -> tuple[Recipient, ...]:
    """The recipients for apprise URLs, such as `slack://${SLACK_TOKENS}/#gpus`, or `file:PATH`.

    `${NAME}` is an environment variable; a file (mode 0600) holds one URL per line.
    InputError for a variable that is not set, a file that others can read, or a URL that apprise
    does not know; the error never contains the address.
    """
    found = []
    for number, text in enumerate(given, 1):
        if text.startswith(_FILE):
            path = Path(text.removeprefix(_FILE))
            lines = [line.strip() for line in read_secret(path).splitlines()]
            for place, line in enumerate(lines, 1):
                if line and not line.startswith("#"):
                    found.append(_recipient(line, f"line {place} of {path}", environment))
            continue
        where = f"--notify number {number}"
        if _PASSWORD.search(text):
            raise InputError(
                f"{where} contains a password. Write ${{NAME}} in its place and set NAME in the "
                "environment, or put the URL into a file of mode 0600: file:PATH."
            )
        found.append(_recipient(text, where, environment))
    return tuple(found)


def _recipient(text: str, where: str, environment: Mapping[str, str]) -> Recipient:
    def value(match: re.Match[str]) -> str:
        if not environment.get(match[1]):
            raise InputError(f"{where}: the environment variable {match[1]} is not set.")
        return secret(match[1], environment[match[1]])

    address = _VARIABLE.sub(value, text)
    scheme = _SCHEME.match(address)
    apprise = _apprise()
    if scheme is None or not _quietly(lambda: apprise.Apprise().add(address)):
        word = (
            "is not a URL"
            if scheme is None
            else (f"has a scheme that apprise does not know ({scheme[1]}://…)")
        )
        raise InputError(
            f"{where} {word}. Try json://host/path, mailto://…, slack://…; apprise's documentation "
            "lists them."
        )
    return Recipient(f"{scheme[1]}:// ({where})", address)


def notify(
    to: Sequence[Recipient],
    found: Sequence[Alert],
    *,
    labels: Mapping[str, str],
    subject: str,
    record: Path,
    now: datetime,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Notify each recipient of alerts that newly fire and of alerts that have resolved.

    `record` is the file that records this, written atomically after each recipient; `subject` says
    what the alerts are about and when. A failed delivery is tried up to four times and again in
    the next run; the other recipients are still notified. SourceError if a delivery failed or
    another run is busy with the file.
    """
    failed = []
    busy = f"Another run is sending alerts recorded in {record}; nothing was sent. Try again later."
    with workplace(record.with_name(f".{record.name}.sending"), busy=busy):
        known = _read(record)
        for each in to:
            own = known.setdefault(each.key, {})
            news = _news(found, own, labels)
            if not (news.fired or news.resolved):
                continue
            if not _sent(each, news, news.body(labels, subject), pause):
                failed.append(each.shown)
                continue
            for one in news.fired:
                own[_identity(one, labels)] = iso(now)
            for one in news.resolved:
                del own[_identity(one, labels)]
            _write(record, known)
    if failed:
        raise SourceError(
            f"{', '.join(failed)} did not accept the alerts. Is the address right, and can it be "
            "reached from here? The next run tries again."
        )


def _news(found: Sequence[Alert], known: Mapping[str, str], labels: Mapping[str, str]) -> News:
    def is_known(one: Alert) -> bool:
        return _identity(one, labels) in known

    return News(
        tuple(one for one in found if one.state == "fired" and not is_known(one)),
        tuple(one for one in found if one.state == "quiet" and is_known(one)),
    )


def _identity(one: Alert, labels: Mapping[str, str]) -> str:
    """What identifies an alert across runs: its rule and the labels it is sent with."""
    return json.dumps([one.rule.name, dict(sorted(labels.items()))], ensure_ascii=False)


def _sent(to: Recipient, news: News, body: str, pause: Callable[[float], None]) -> bool:
    apprise = _apprise()
    kind = apprise.NotifyType.FAILURE if news.fired else apprise.NotifyType.SUCCESS
    asset = apprise.AppriseAsset(app_id="vllm-capacity", app_desc="vLLM capacity and cost")

    def sent() -> None:
        recipient = apprise.Apprise(asset=asset)
        recipient.add(to.address)
        if not recipient.notify(body, news.title, kind, body_format=apprise.NotifyFormat.TEXT):
            raise TransientError("not taken")

    try:
        _quietly(lambda: with_retries(sent, pause))
    except TransientError:
        return False
    return True


def _apprise() -> ModuleType:
    """The apprise package; InputError if it is not installed."""
    with needing_extra("notify"):
        found: ModuleType = _quietly(lambda: importlib.import_module("apprise"))
        return found


def _quietly(call: Callable[[], Any]) -> Any:  # noqa: ANN401  whatever the call gives
    """Run the call with apprise's log silenced, since it may show part of an address."""
    log = logging.getLogger("apprise")
    before = log.disabled
    log.disabled = True
    try:
        with warnings.catch_warnings():  # from apprise's imports
            warnings.simplefilter("ignore", DeprecationWarning)
            return call()
    finally:
        log.disabled = before


def _read(record: Path) -> Notified:
    try:
        return msgspec.json.decode(record.read_bytes(), type=Notified)
    except FileNotFoundError:
        return {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise InputError(
            f"{record} is damaged. Remove it; alerts that still fire are then sent once more."
        ) from None


def _write(record: Path, known: Notified) -> None:
    body = msgspec.json.format(msgspec.json.encode({k: v for k, v in known.items() if v}))
    partial = record.with_name(f".{record.name}.sending") / record.name
    partial.write_bytes(body + b"\n")
    partial.replace(record)
