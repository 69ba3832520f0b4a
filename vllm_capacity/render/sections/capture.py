"""Was it all captured? Scrapes, interruptions and losses of a window as tables, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import polars as pl

from vllm_capacity.figures import scrapes
from vllm_capacity.render.numbers import count, number, percent, seconds
from vllm_capacity.render.prose import verdict as words
from vllm_capacity.render.sections.elements import Piece, table
from vllm_capacity.render.study import Study
from vllm_capacity.render.text import Said, said

_VERDICTS = {
    "good": "Yes, this window holds what happened",
    "usable": "Mostly, and what is missing has a bound",
    "poor": "Not all of it; totals are exact for what was counted, means over time are in doubt",
}


@dataclass(frozen=True)
class _Scraped:
    """How often a target was asked and answered; `absent` tries an even grid would have had."""

    target: str
    tries: int
    good: int
    absent: int
    usual_seconds: float

    @property
    def expected(self) -> int:
        return self.tries + self.absent


def scrape_table(asked: Study) -> Piece:
    """A row a target: how often it was asked and answered, and what an even grid would have."""
    rows = [
        [
            each.target,
            seconds(each.usual_seconds),
            count(each.expected),
            count(each.good),
            count(each.tries - each.good),
            count(each.absent),
            percent(each.good / each.expected),
        ]
        for each in _scraped(asked)
    ]
    return table(
        ["target", "asked every", "scrapes due", "answered", "failed", "never made", "answered"],
        rows,
        numeric=(1, 2, 3, 4, 5, 6),
        empty="No target was ever asked in this part.",
    )


def interruptions(asked: Study) -> Piece:
    """Gaps and restarts in the order of time: what happened, from the last good scrape to the next.

    A gap in which nobody asked is the scraper's; one in which the target was asked and did not
    answer is the server's, or the network's.
    """
    tries, part = _tries(asked), asked.part
    restarts = scrapes.restarts(asked.opened, part=part)
    gaps = scrapes.gaps(tries, part=part)
    rows = [
        (gap.start, gap.end, gap.instance, _gap_words(gap, tries, restarts), _start(gap, restarts))
        for gap in gaps
    ]
    rows += [
        (each.before, each.after, each.instance, "started again, no scrape missed", each.started)
        for each in restarts
        if not any(_covers(gap, each) for gap in gaps)
    ]
    return table(
        [
            "target",
            "last good scrape",
            "next good scrape",
            "length",
            "what happened",
            "new process",
        ],
        [
            [
                target,
                _clock(start),
                _clock(end),
                seconds((end - start).total_seconds()),
                what,
                _clock(started) if started else "–",
            ]
            for start, end, target, what, started in sorted(rows, key=lambda row: row[:3])
        ],
        numeric=(3,),
        caption="Times are UTC.",
        empty="No gap and no restart: every scrape followed the one before it.",
    )


def losses(asked: Study) -> Piece:
    """What was counted, exactly, and the most that restarts may have swallowed of it."""
    requests, tokens = asked.answer["requests"], asked.answer["tokens"]
    both = [tokens["prompt"], tokens["generation"]]
    rows = [
        ("finished requests", requests["finished"], requests["lost"]["high"]),
        (
            "tokens, prompt and output",
            None if None in both else sum(both),
            tokens["lost"]["high"],
        ),
    ]
    return table(
        ["what", "counted", "missing, at least", "missing, at most", "of the counted"],
        [
            [
                what,
                "not counted" if counted is None else count(counted),
                "0",
                count(missing),
                "–" if not counted else percent(missing / counted),
            ]
            for what, counted, missing in rows
        ],
        numeric=(1, 2, 3, 4),
    )


def captures_compared(asked: Study, other: Study) -> Piece:
    """Two windows beside each other: how complete they are, and how far that can move a figure."""
    both = (asked, other)
    rows = [
        ["telemetry", *(words.quality_word(each.answer)[0] for each in both)],
        ["scrapes answered", *(percent(_answered_ratio(each)) for each in both)],
        ["gaps", *(count(_found(each, "gap")) for each in both)],
        ["restarts", *(count(_found(each, "restart")) for each in both)],
        ["requests counted", *(_counted(each) for each in both)],
        [
            "requests missing, at most",
            *(count(each.answer["requests"]["lost"]["high"]) for each in both),
        ],
        ["mean of running requests", *(_mean_running(each) for each in both)],
    ]
    return table(["", *(each.opened.name for each in both)], rows, numeric=(1, 2))


def capture_verdict(asked: Study) -> Said:
    """Whether the window holds what happened, in one sentence."""
    answer = asked.answer
    word, _ = words.quality_word(answer)
    due = sum(each.expected for each in _scraped(asked))
    good = sum(each.good for each in _scraped(asked))
    parts = [f"{count(good)} of {count(due)} scrapes answered ({percent(good / due)})"]
    finished, lost = answer["requests"]["finished"], answer["requests"]["lost"]["high"]
    if finished is not None:
        parts.append(f"{count(finished)} requests were counted")
    if lost and finished:
        parts.append(
            f"up to {count(lost)} more ({percent(lost / finished)}) may have been lost in "
            f"{_endings(asked)}"
        )
    else:
        parts.append("none can have been lost in a restart")
    return said(f"{_VERDICTS[word]}: {', '.join(parts)}.")


def _endings(asked: Study) -> str:
    """The restarts, and the servers that did not answer to the end, as they are counted."""
    checks = [row["check"] for row in asked.answer["quality"]]
    parts = [words.plural(_found(asked, "restart"), "restart")] if "restart" in checks else []
    if "outage" in checks:
        parts.append(f"{words.plural(checks.count('outage'), 'server')} that stopped answering")
    return " and ".join(parts) or "targets that were first scraped late"


def _scraped(asked: Study) -> list[_Scraped]:
    found = []
    for (target,), own in _tries(asked).group_by("instance", maintain_order=True):
        inside = own.filter(pl.col("ts") >= asked.part.start)
        ts = inside.get_column("ts")
        steps = ts.diff().drop_nulls().dt.total_microseconds() / 1e6
        usual = float(steps.median() or 0.0)  # type: ignore[arg-type]
        good = inside.filter("is_good").height
        found.append(_Scraped(str(target), inside.height, good, scrapes.absent(ts), usual))
    return [each for each in found if each.tries]


def _tries(asked: Study) -> pl.DataFrame:
    return scrapes.attempts(asked.opened, end=asked.part.end)


def _answered_ratio(asked: Study) -> float:
    found = _scraped(asked)
    return sum(each.good for each in found) / max(1, sum(each.expected for each in found))


def _gap_words(gap: scrapes.Gap, tries: pl.DataFrame, restarts: Sequence[scrapes.Restart]) -> str:
    inside = tries.filter(
        (pl.col("instance") == gap.instance) & (pl.col("ts") > gap.start) & (pl.col("ts") < gap.end)
    )
    asked = (
        f"asked {words.plural(inside.height, 'time')}, no answer" if inside.height else "not asked"
    )
    is_restart = any(_covers(gap, each) for each in restarts)
    return f"{asked}{'; the server started again' if is_restart else ''}"


def _covers(gap: scrapes.Gap, restart: scrapes.Restart) -> bool:
    return (
        gap.instance == restart.instance
        and gap.start <= restart.before
        and restart.after <= gap.end
    )


def _start(gap: scrapes.Gap, restarts: Sequence[scrapes.Restart]) -> datetime | None:
    return next((each.started for each in restarts if _covers(gap, each)), None)


def _clock(at: datetime) -> str:
    return f"{at:%-d %b %H:%M:%S}"


def _found(asked: Study, check: str) -> int:
    rows: list[dict[str, Any]] = asked.answer["quality"]
    return sum(int(row["count"]) for row in rows if row["check"] == check)


def _counted(asked: Study) -> str:
    finished = asked.answer["requests"]["finished"]
    return "not counted" if finished is None else count(finished)


def _mean_running(asked: Study) -> str:
    """The mean with the most that missing scrapes can move it."""
    mean = asked.answer["running"]["mean"]
    if mean is None:
        return "not observed"
    moved = [row["max_effect"].get("running.mean", 0.0) for row in asked.answer["quality"]]
    return f"{number(mean)}, off by at most {number(sum(moved), like=mean)}"
