"""One thing `doctor` looked at: what was found, and what to do if it is broken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vllm_capacity.errors import plain

Link = Literal["vLLM", "proxy", "Collector", "Parseable", "window"]
CheckState = Literal["ok", "broken", "unknown"]


@dataclass(frozen=True)
class CheckResult:
    """`check` names the fault that would be found here; `remedy` is empty unless it was."""

    link: Link
    check: str
    state: CheckState
    found: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """The keys of `vllm-capacity doctor --json`."""
        return {
            "link": self.link,
            "check": self.check,
            "state": self.state,
            "found": self.found,
            "remedy": self.remedy,
        }


def fine(link: Link, check: str, found: str) -> CheckResult:
    """A check that found nothing wrong."""
    return CheckResult(link, check, "ok", plain(found))


def broken(link: Link, check: str, found: str, remedy: str) -> CheckResult:
    """A check that found its fault."""
    return CheckResult(link, check, "broken", plain(found), plain(remedy))


def unknown(link: Link, check: str, found: str) -> CheckResult:
    """A check that could not be made, and why."""
    return CheckResult(link, check, "unknown", plain(found))


def first_broken(findings: list[CheckResult]) -> CheckResult | None:
    """The first broken link on the way from vLLM to the window; None if there is none."""
    return next((finding for finding in findings if finding.state == "broken"), None)
