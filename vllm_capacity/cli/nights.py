"""A nightly run: pull the days that are due, make their pages, remove what is old.

It does as much as it can: if a source fails midway, the days already pulled still get their pages,
and a page that could not be written is written by the next run.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from pathlib import Path

from msgspec import Struct, field
from msgspec.structs import replace

from vllm_capacity.cli.options.against import earlier_day, is_duration, later_days
from vllm_capacity.cli.options.extra_inputs import ExtraInputs, Inputs, has_new_rows
from vllm_capacity.cli.options.settings import DaySettings, SourceSettings
from vllm_capacity.errors import CapacityError, InputError, NoTelemetryError, SourceError
from vllm_capacity.live.days import DayStore, Outcome, Reach, Source, day_store
from vllm_capacity.live.pull import PullOrder, pull_window, unreached_end
from vllm_capacity.render.report.run import Progress
from vllm_capacity.render.report.write import ReportOrder, notebook_parameters, write_report
from vllm_capacity.timerange import TimeRange, parse_duration_seconds


class Night(Struct, frozen=True):
    """A nightly run's job: the source of the days, the store for them, and the page made of each.

    `against` is what a page is compared with: a day, an earlier day by duration, or a window;
    `extra` has the usage logs and the invoice for the page.
    """

    pull: PullOrder
    source: Source
    windows: Path
    reach: Reach
    page: ReportOrder
    against: str | None = None
    extra: ExtraInputs = field(default_factory=ExtraInputs)

    @classmethod
    def of(
        cls,
        source: SourceSettings,
        days: DaySettings,
        page: ReportOrder,
        *,
        against: str | None = None,
        extra: ExtraInputs | None = None,
    ) -> Night:
        """The nightly run of these settings; InputError for an invalid duration or no origin."""
        if source.origin is None:
            raise InputError("Give the source of the days with --from: a URL, a folder, or s3://….")
        late = _duration(days.late)
        reach = Reach(
            last=_duration(days.last),
            late=late,
            keep=None if days.keep is None else _duration(days.keep),
            has_today=days.has_today,
        )
        back = None if against is None or not is_duration(against) else _duration(against)
        if back and reach.keep and reach.keep < back + reach.last:
            raise InputError(
                "Days must be kept until they are compared with: --keep is shorter than --against "
                "and --last together."
            )
        # All days of a store have one resolution: by default that of a day's pull. Days already
        # stored from a Prometheus were pulled in full.
        is_full = bool(source.is_full) if source.stream else source.is_full is not False
        return cls(
            source.pull_order(None, late, is_full=is_full),
            Source(source.origin, source.stream, days.zone, source.match, source.tenant),
            days.windows,
            reach,
            page,
            against,
            extra or ExtraInputs(),
        )

    def inputs(self, store: DayStore, day: date) -> Inputs:
        """The inputs of a day's page besides its window."""
        return self.extra.of_day(day, store.time_range(day))

    def parameters(self, store: DayStore, day: date, inputs: Inputs) -> dict[str, object]:
        """The parameters of a day's page; it has no comparison if the other day has no window.

        So in the first week, if days are compared with the week before, no page has a comparison.
        """
        window = {"window": str(store.path(day))}
        if self.against is not None:
            earlier = earlier_day(self.against, day)
            if earlier is None:
                window["against"] = self.against
            elif earlier != day and store.path(earlier).is_dir():
                window["against"] = str(store.path(earlier))
        return {**window, **inputs.parameters, **self.page.parameters}


class Done(Struct, frozen=True):
    """The result of a run: its pages, days without data, notes, and the error that stopped it."""

    pages: tuple[Path, ...] = ()
    empty: tuple[date, ...] = ()
    notes: tuple[str, ...] = ()
    failure: CapacityError | None = None


def night(
    order: Night,
    *,
    now: datetime,
    environment: Mapping[str, str],
    cache: Path | None,
    progress: Progress = lambda done, total: None,
) -> Done:
    """Do everything that is due now, and return the result.

    SourceError if another run is active, InputError for a page that cannot be made. A day without
    data is reported once, when it is first found to have none.
    """

    def pull(time_range: TimeRange, target: Path) -> None:
        wanted = replace(order.pull, time_range=time_range)
        pull_window(wanted, target, environment=environment, now=now)

    sample: dict[str, object] = {} if order.against is None else {"against": order.against}
    sample |= order.extra.sample
    notebook_parameters(replace(order.page, parameters={**sample, **order.page.parameters}))
    with day_store(order.windows, order.source) as store:
        done = Done()
        for day in store.due(order.reach, now):
            is_known = day in store.days
            try:
                outcome = store.pull(day, pull, now=now)
            except SourceError as error:
                done = replace(done, failure=error)
                break
            done = _with(done, store, day, outcome, is_known=is_known)
            if order.against is not None and outcome in (Outcome.NEW, Outcome.CHANGED):
                for later in later_days(order.against, day, list(store.days)):
                    store.report_again(later)
        _report_changed_inputs(order, store)
        pages = []
        for day in store.unreported():
            inputs = order.inputs(store, day)
            wanted = replace(order.page, parameters=order.parameters(store, day, inputs))
            lines = [f"{day}: {each}: the report is made without it." for each in inputs.missing]
            done = replace(done, notes=(*done.notes, *lines))
            try:
                pages.append(write_report(wanted, made_at=now, cache=cache, progress=progress))
            except CapacityError as error:  # the next run tries again
                done = replace(done, failure=done.failure or error)
                continue
            store.reported(day, inputs.digest)
        store.prune(order.reach, now)
        return replace(done, pages=tuple(pages))


def _report_changed_inputs(order: Night, store: DayStore) -> None:
    """Mark the pages of days whose logs or invoice have changed to be remade."""
    for day, known in list(store.days.items()):
        if not (known.is_reported and store.path(day).is_dir()):
            continue
        if has_new_rows(order.inputs(store, day).digest, known.inputs):
            store.report_again(day)


def missing_days(done: Done) -> None:
    """NoTelemetryError naming the days without data, if there are any."""
    if done.empty:
        raise NoTelemetryError(
            f"No telemetry for {_spans(done.empty)}. Was vLLM scraped then, and is this the right "
            "source? A day is pulled again until no more samples can arrive late (--late)."
        )


def _spans(days: tuple[date, ...]) -> str:
    """Days in order, with consecutive days as one span."""
    spans: list[list[date]] = []
    for day in days:
        if spans and day - spans[-1][-1] == timedelta(days=1):
            spans[-1].append(day)
        else:
            spans.append([day])
    return ", ".join(f"{a[0]} to {a[-1]}" if len(a) > 1 else str(a[0]) for a in spans)


def _with(done: Done, store: DayStore, day: date, outcome: Outcome, *, is_known: bool) -> Done:
    if outcome is Outcome.EMPTY and not is_known:
        return replace(done, empty=(*done.empty, day))
    if outcome is Outcome.IN_USE:
        note = f"{store.path(day)} is being read; the next run brings it up to date."
        return replace(done, notes=(*done.notes, note))
    if outcome in (Outcome.NEW, Outcome.CHANGED) and (short := unreached_end(store.path(day))):
        return replace(done, notes=(*done.notes, f"{day}: {short}"))
    return done


def _duration(text: str) -> timedelta:
    return timedelta(seconds=parse_duration_seconds(text))
