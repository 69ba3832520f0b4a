"""Scrape targets: URLs, each of which is an instance, and their user-defined labels.

Targets with different labels come from a file in the format of Prometheus' file-based service
discovery, which many people already have: a list of `targets` with `labels`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from msgspec import Struct, field
from msgspec.structs import replace

from vllm_capacity.errors import InputError, plain
from vllm_capacity.live.access import metrics_url

_EXAMPLE = "http://127.0.0.1:8000/metrics"
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_TAKEN = frozenset(("engine", "instance", "le", "model", "model_name"))
_FILE = (
    'a list of {"targets": ["gpu-1:8000"], "labels": {"team": "search"}}, as JSON or YAML: the '
    "format of Prometheus' file_sd_configs"
)


class Target(Struct, frozen=True):
    """An endpoint, its instance name (host and port), and its labels."""

    url: str
    instance: str
    labels: Mapping[str, str] = field(default_factory=dict)


def targets(urls: Sequence[str], labels: Mapping[str, str] | None = None) -> list[Target]:
    """The targets for these URLs, all with the given labels.

    http:// and /metrics are added to a bare host:port. InputError for anything but an http(s) URL,
    for two URLs with the same instance, and for labels that telemetry cannot have.
    """
    for name, value in (labels or {}).items():
        _check_label(name, value)
    return distinct([replace(_target(text), labels=dict(labels or {})) for text in urls])


def distinct(found: Sequence[Target]) -> list[Target]:
    """The same targets; InputError if two have the same instance."""
    seen: set[str] = set()
    for target in found:
        if target.instance in seen:
            raise InputError(
                f"The target {target.instance} is given twice; each target is one instance."
            )
        seen.add(target.instance)
    return list(found)


def listed_targets(path: Path, labels: Mapping[str, str] | None = None) -> list[Target]:
    """The targets in a file; its labels override the given ones. InputError for an invalid file."""
    try:
        groups = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
    except FileNotFoundError:
        raise InputError(f"There is no file {path}. Expected {_FILE}.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValueError) as error:
        raise InputError(f"Cannot read targets from {path}: {plain(error)[:200]}") from None
    if not isinstance(groups, list) or not groups:
        raise InputError(f"{path} lists no targets. Expected {_FILE}.")
    return [one for group in groups for one in _group(group, path, labels or {})]


def named_targets(
    urls: Sequence[str], listed: Path | None = None, labels: Mapping[str, str] | None = None
) -> list[Target]:
    """The targets of the URLs and of the file, each once, with the labels that all are given.

    InputError as for `targets` and `listed_targets`.
    """
    found = targets([metrics_url(url) for url in urls], labels)
    return distinct([*found, *(listed_targets(listed, labels) if listed is not None else [])])


def _group(group: Any, path: Path, labels: Mapping[str, str]) -> list[Target]:  # noqa: ANN401  YAML
    urls = group.get("targets") if isinstance(group, dict) else None
    own = (group.get("labels") or {}) if isinstance(group, dict) else None
    if not isinstance(urls, list) or not urls or not isinstance(own, dict):
        raise InputError(
            f"{path} has a group without targets: {plain(group)[:200]}. Expected {_FILE}."
        )
    if not all(isinstance(url, str) for url in urls):
        raise InputError(f"{path} has targets that are not text: {plain(urls)[:200]}.")
    own = {str(name): str(value) for name, value in own.items()}
    return targets([metrics_url(url) for url in urls], {**labels, **own})


def label(text: str) -> tuple[str, str]:
    """Name and value of `team=search`; InputError for anything else."""
    name, equals, value = text.partition("=")
    if not equals:
        raise InputError(
            f"Cannot read the label {plain(text)[:200]!r}: write NAME=VALUE, as in team=search."
        )
    _check_label(name.strip(), value.strip())
    return name.strip(), value.strip()


def _check_label(name: str, value: str) -> None:
    if not _LABEL.fullmatch(name) or name.startswith("__") or not value or plain(value) != value:
        raise InputError(
            f"{plain(name)[:100]!r}={plain(value)[:100]!r} is not a label: a name is letters, "
            "digits and _, a value is a line of text, as in team=search."
        )
    if name in _TAKEN:
        raise InputError(f"The label {name} is reserved; choose another name.")


def _target(text: str) -> Target:
    url = text if "://" in text else f"http://{text}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"Cannot scrape {text!r}: not an http(s) URL, such as {_EXAMPLE}.")
    if parts.path in ("", "/"):
        url = f"{parts.scheme}://{parts.netloc}/metrics"
    # Credentials in a URL belong to the request, not to the name of the instance.
    return Target(url, parts.netloc.rpartition("@")[2])
