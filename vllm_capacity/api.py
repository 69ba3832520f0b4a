"""The Python interface: open, scrape or pull a window, analyze it, look at the results.

    >>> import vllm_capacity as vc
    >>> w = vc.open("vllm-sweep")
    >>> a = w["2026-11-24T04:05":"2026-11-24T04:20"].analyze(price=1.64)
    >>> a.saturation.bottleneck
    'kv-bound'

Texts are read as on the command line: names and paths, ISO times, durations, prices. Invalid texts
raise the same kind of error, an `InputError` of one line.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
from msgspec import Struct
from msgspec.structs import replace

from vllm_capacity import analysis, comparison
from vllm_capacity import plan as planning
from vllm_capacity import tenants as tenancy
from vllm_capacity.assumptions import Assumptions, Hardware, Slo, pricing, slo_of
from vllm_capacity.comparison import Comparison
from vllm_capacity.errors import InputError, needing_extra
from vllm_capacity.estimate import Estimate
from vllm_capacity.plan import Plan, PlanRequest
from vllm_capacity.record import plain
from vllm_capacity.sources.invoices import read_invoice
from vllm_capacity.sources.usage import UsageLog
from vllm_capacity.telemetry import window as telemetry
from vllm_capacity.tenants import Tenants
from vllm_capacity.timerange import (
    TimeRange,
    last,
    named_range,
    parse_duration_seconds,
    parse_instant,
)
from vllm_capacity.timerange import time_zone as zone_named
from vllm_capacity.verdicts.cost.reconcile import Reconciliation
from vllm_capacity.verdicts.demand.forecast import Forecast
from vllm_capacity.verdicts.hardware.what_if import WhatIf
from vllm_capacity.verdicts.saturation.at_load import AtLoad
from vllm_capacity.verdicts.saturation.fit import Saturation
from vllm_capacity.verdicts.saturation.next_load import NextLoad
from vllm_capacity.verdicts.sizing import Policy

if TYPE_CHECKING:
    from vllm_capacity.render.report.reprice import Repriced

Instant = str | datetime | None
Duration = str | float | timedelta


class Window(Struct, frozen=True):
    """A window of telemetry, or a time range of it: `w["08:10":"08:20"]`.

    Query it with `sql`, or `analyze` it with a price and latency targets.
    """

    opened: telemetry.Window
    time_range: TimeRange

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.opened.name

    @property
    def path(self) -> Path:
        """The folder."""
        return self.opened.path

    @property
    def is_simulated(self) -> bool:
        """Whether the telemetry comes from a simulator."""
        return self.opened.is_simulated

    def sql(self, query: str, **params: object) -> pl.DataFrame:
        """DuckDB's result for a query over the views of the whole window.

        Views: samples, histograms, series, intake. `$name` in the query is bound to the argument
        `name`. InputError for a query that DuckDB rejects.
        """
        return self.opened.sql(query, **params)

    def __getitem__(self, times: slice) -> Window:
        """The part between two times; a time of day alone is on the window's first day (UTC).

        InputError if nothing of the window lies in it.
        """
        if not isinstance(times, slice) or times.step is not None:
            raise InputError(f'A window is sliced by two times, w["08:10":"08:20"], not {times!r}.')
        start, end = (_instant(each, self.time_range.start) for each in (times.start, times.stop))
        first = max(filter(None, (start, self.time_range.start)))
        until = min(filter(None, (end, self.time_range.end)))
        return Window(self.opened, self.opened.clamp(first, until))

    def analyze(
        self,
        *,
        price: float | str | None = None,
        slo: Slo | str | None = None,
        gpus_per_engine: float = 1.0,
        price_rules: str | Path | None = None,
        price_note: str = "",
        gpu: str | None = None,
        model: str | None = None,
        exact: bool = False,
        time_zone: str = "UTC",
    ) -> Analysis:
        """The analysis of this time range under these assumptions.

        `price`: USD per GPU-hour (a number, or an interval: `1.2 to 1.9`), or words that match a
        row of gpu_prices.csv; `price_rules`: a mapping file instead. Without a price, money stays
        unknown. `slo`: the latency targets, as a `Slo` or as text (`ttft 2.0, itl 0.1`). `gpu`: the
        GPU it ran on (`A100-80GB-PCIe`), if its targets' labels do not name it, and `model`: the
        model's name, if the served name is not a known one; both are used to calculate what a
        server that was never loaded could do (`by_arithmetic`). `exact`: read every scrape even of
        a range over six hours. `time_zone`: zone of days and hours in charts (`Europe/Berlin`);
        everything else stays in UTC. InputError for an invalid price, target, GPU, model, GPU count
        or time zone.
        """
        assumed = Assumptions(
            pricing(
                price, gpus_per_engine=gpus_per_engine, price_rules=price_rules, note=price_note
            ),
            slo_of(slo),
            Hardware(gpu or None, model or None),
        )
        ends = self.time_range.start, self.time_range.end
        made = Analysis.of(self.opened, *ends, assumed, exact=exact)
        return replace(made, time_zone=zone_named(time_zone).key)

    def __repr__(self) -> str:
        """Name, models, engines and time range in one line."""
        found = self.sql("select distinct instance, engine from series where engine is not null")
        models = self.sql("select distinct model_name from series where model_name is not null")
        names = ", ".join(sorted(models.get_column("model_name"))) or "no model named"
        engines = f"{found.height} engine{'' if found.height == 1 else 's'}"
        made = " · SIMULATED" if self.is_simulated else ""
        return f"{self.name} · {names} · {engines} · {_span(self.time_range)}{made}"


class Analysis(analysis.Analysis, frozen=True):
    """A time range of a window under a price and targets: figures, verdicts, frames and charts.

    Everything is computed once, on first access. Its charts show days and hours in `time_zone`.
    """

    time_zone: str = "UTC"

    @property
    def capacity(self) -> Estimate:
        """The maximum output tokens per second of the server."""
        return self.saturation.capacity

    @cached_property
    def charts(self) -> Any:  # noqa: ANN401  a method per chart
        """The charts, by name: `a.charts.saturation()`."""
        with needing_extra("report"):
            from vllm_capacity.render.charts import Charts

        return Charts(self, time_zone=self.time_zone)

    def plan(
        self,
        *,
        requests_per_second: float | None = None,
        gpu: str | None = None,
        gpus: Sequence[str] = (),
        model: str | None = None,
        policy: Policy | None = None,
    ) -> Plan:
        """The number of replicas, alternative GPUs, and the cost.

        `requests_per_second` None: the window's demand (p95). `gpu` is the GPU it ran on, which
        vLLM does not export; `gpus` those to compare it with (default: all known), `model` the
        model's name if the served name is not a known one. InputError for unknown names.
        """
        request = PlanRequest(
            demand_requests_per_second=requests_per_second,
            from_gpu=gpu,
            to_gpus=tuple(gpus),
            model=model,
            policy=policy or Policy(),
        )
        return planning.plan(self, request)

    def tenants(
        self,
        usage: UsageLog | str | Path | Sequence[str | Path],
        *,
        idle: str = "shared",
        models: Mapping[str, str] | None = None,
    ) -> Tenants:
        """The bill by tenant, from a gateway's log: a result of `read_usage`, or files for it.

        `idle`: "shared" in proportion to use, or kept "apart". `models` maps names in the log to
        served models. InputError if no row is in this time range and for a served model.
        """
        if not isinstance(usage, UsageLog):
            usage = read_usage(usage)
        return tenancy.tenants(self, usage, idle=tenancy.idle_rule(idle), aliases=models)

    def reconcile(
        self, invoice: str | Path, *, columns: str | Mapping[str, str] | None = None
    ) -> Reconciliation:
        """The bill compared with the cloud's charges in a CSV or Parquet file.

        `columns` maps its column names ("cost=Charge,start=Day"). InputError for a file without
        readable charges, or without any in this time range.
        """
        return self.reconciled(read_invoice(Path(invoice), columns=columns))

    def compare(self, before: analysis.Analysis | str | Path) -> Comparison:
        """What changed since `before`, at the same load and mix, by more than noise.

        `before`: an analysis, or the name or path of a window, optionally with a time range
        (NAME@START..END), which then gets the same price and targets. A change that cannot be
        determined is unknown, with its reason. WindowError if there is no such window.
        """
        if isinstance(before, str | Path):
            found = open(before)
            ends = found.time_range.start, found.time_range.end
            before = Analysis.of(found.opened, *ends, self.assumptions)
        return compare(before, self)

    def explain(self, figure: str) -> Any:  # noqa: ANN401  shown by its repr
        """How a figure is computed: `a.explain("cost.per_request")`.

        Its definition, the function that computes it with file and line, the queries, and their
        first rows. InputError, with the nearest names, for an unknown figure.
        """
        from vllm_capacity.render.sections.definitions import explanation

        return explanation(self, figure)

    def to_json(self, path: str | Path | None = None) -> str:
        """The answer as JSON (`answers.schema.json`); also written atomically to a given `path`."""
        text = json.dumps(plain(self.answer), allow_nan=False, indent=2)
        if path is not None:
            from vllm_capacity.render.report.files import write_whole

            write_whole(Path(path), text + "\n")
        return text

    def export(
        self, to: str, path: str | Path | None = None, *, currency: str | None = None
    ) -> str | bytes:
        """The figures as `csv`, `parquet`, `json`, `markdown`, `focus`, `prometheus` or `litellm`.

        Text, or bytes for Parquet; also written atomically to `path`, if given. `currency`: one
        other than dollars, at a dated rate ("EUR=0.92@2026-11-28"). InputError for what a format
        cannot express: FOCUS and LiteLLM need a price.
        """
        from vllm_capacity.render.exports import export
        from vllm_capacity.render.exports.currency import USD, parse_currency
        from vllm_capacity.render.report.files import write_whole

        made = export(self, to, USD if currency is None else parse_currency(currency))
        if path is not None:
            write_whole(Path(path), made)
        return made

    def to_html(self, path: str | Path) -> Path:
        """Write an HTML page with figures, charts and tables atomically to `path`, and return that.

        It runs the report's notebook, so it takes some seconds.
        """
        with needing_extra("report"):
            from vllm_capacity.render.report.write import write_page

            made_at = datetime.now(UTC)
            return write_page(self, Path(path), made_at=made_at, time_zone=self.time_zone)

    def __repr__(self) -> str:
        """The answer in a few lines."""
        found = self.answer
        lines = [
            f"{self.window.name} · {_span(self.time_range)}",
            f"cost per request   {found.cost.per_request}",
            f"utilization        {found.cost.utilization}",
            f"capacity           {found.saturation.capacity}",
            f"bottleneck         {found.saturation.bottleneck or 'none seen'}",
            f"p95 TTFT           {found.latency.ttft.p95}",
            f"p95 ITL            {found.latency.itl.p95}",
            f"quality findings   {len(found.quality)}",
        ]
        return "\n".join(lines)

    def _repr_mimebundle_(self, **_: object) -> dict[str, Any]:
        """The first screen of its page, and the lines of `repr`; only these without `report`."""
        lines = {"text/plain": repr(self)}
        try:
            from vllm_capacity.render.sections.header import tiles, title_line, verdict

            own_tiles = tiles(self)
            shown = own_tiles._repr_mimebundle_()
            if "text/html" in shown:  # not in a report's kernel
                screen = (title_line(self), verdict(self), own_tiles)
                shown["text/html"] = "\n".join(each.html for each in screen)
        except ModuleNotFoundError:
            return lines
        return shown | lines

    def __dir__(self) -> Iterable[str]:
        """The names intended for users."""
        return sorted(name for name in super().__dir__() if not name.startswith("_"))


def open(name_or_path: str | Path) -> Window:
    """The window of that name or path, or a time range of it: `NAME@START..END`.

    Either end may be omitted. A name is looked up in data/windows and data/examples of this folder
    and its parents, then among the shipped windows. While a scrape is still writing the window, it
    has the telemetry so far. WindowError, with the available names, if there is none.
    """
    if not isinstance(name_or_path, str | Path):
        raise InputError(f"A window is named by text or a path, not by {name_or_path!r}.")
    from vllm_capacity.live.running import open_recorded

    name, *ends = named_range(str(name_or_path))
    start, end = (None if each is None else parse_instant(each) for each in ends)
    opened = open_recorded(name)
    return Window(opened, opened.clamp(start, end))


def scrape(
    *urls: str,
    to: str | Path,
    every: Duration = "2s",
    duration: Duration,
    about: str | None = None,
    labels: Mapping[str, str] | None = None,
    targets: str | Path | None = None,
) -> Window:
    """Scrape the /metrics of these servers for that duration into a new window at `to`.

    All of them get the `labels`, for `by` and mapping files: `{"team": "search"}`. `targets` is a
    file of more servers with labels of their own, in the format of Prometheus' file-based service
    discovery. Credentials come from VLLM_METRICS_USER and VLLM_METRICS_PASSWORD, or
    VLLM_METRICS_TOKEN. InputError if `to` exists already, SourceError if no scrape was answered.
    """
    from vllm_capacity.live.scrape import capture
    from vllm_capacity.live.targets import named_targets
    from vllm_capacity.sources.exposition import scrapes_in_parts

    capture(
        named_targets(urls, None if targets is None else Path(targets), labels),
        Path(to),
        every_seconds=_seconds(every),
        for_seconds=_seconds(duration),
        environment=os.environ,
        read=scrapes_in_parts,
        about=about,
    )
    return open(to)


def pull(
    origin: str | None = None,
    *,
    to: str | Path,
    stream: str | None = None,
    start: Instant = None,
    end: Instant = None,
    last: Duration | None = None,
    full: bool | None = None,
    match: str | None = None,
    tenant: str | None = None,
    ca: str | Path | None = None,
) -> Window:
    """Pull telemetry into a new window at `to`: from Parseable, its files, or a Prometheus.

    `stream` is Parseable's. Give `start` and `end`, or `last` ("24h"). Credentials come from the
    environment, see SECURITY.md. `full`: every sample, or (False) first and last states per minute;
    None decides by length. `match` selects series of a shared Prometheus, such as
    '{namespace="team-a"}'; `tenant` is the X-Scope-OrgID of a Mimir or Thanos, `ca` a file of
    certificates to trust. InputError for an invalid request, SourceError if the source does not
    respond.
    """
    from vllm_capacity.live.pull import PullOrder, pull_window

    now = datetime.now(UTC)
    time_range = _requested(start, end, last, now)
    trusted = None if ca is None else Path(ca)
    order = PullOrder(origin, stream, time_range, full, match=match, tenant=tenant, ca=trusted)
    pull_window(order, Path(to), environment=os.environ, now=now)
    return open(to)


def compare(before: analysis.Analysis, after: analysis.Analysis) -> Comparison:
    """What changed from one analysis to another, at the same load and mix, by more than noise.

    Each may be of a window or of a time range, with its own price. A change that cannot be
    determined is unknown, with its reason. InputError for anything but an analysis.
    """
    if not all(isinstance(each, analysis.Analysis) for each in (before, after)):
        raise InputError("Compare two analyses: vc.compare(a.analyze(), b.analyze()).")
    return comparison.compare(before, after)


def read_usage(
    files: str | Path | Sequence[str | Path],
    *,
    columns: str | Mapping[str, str] | None = None,
    log_format: str | None = None,
    show_keys: bool = False,
) -> UsageLog:
    """Gateways' logs of requests, for `a.tenants`: LiteLLM, Envoy, nginx, CSV, Parquet.

    `columns` maps a log's column names ("key=x-tenant"), `log_format` is nginx's. Keys are hashed
    unless `show_keys`; with a secret in VLLM_CAPACITY_KEYS_SECRET, guessed keys cannot be checked
    against the hashes. Several files in one text are separated by ";". InputError for a file
    without readable rows.
    """
    from vllm_capacity.sources import usage

    paths = [files] if isinstance(files, Path) else files
    if isinstance(paths, str):
        paths = [each.strip() for each in paths.split(";") if each.strip()]
    keys = usage.Keys(os.environ.get(usage.KEYS_SECRET, ""), are_shown=show_keys)
    return usage.read_usage(
        [Path(each) for each in paths], columns=columns, log_format=log_format, keys=keys
    )


def reprice(
    page: str | Path,
    *,
    price: float | str | None = None,
    price_rules: str | Path | None = None,
    gpus_per_engine: float | None = None,
) -> Repriced:
    """The money figures of a report's page at another price, without its window.

    `price` and `price_rules` as in `Window.analyze`; `gpus_per_engine` None: as many as reported.
    InputError for a file that is not a report or has no bill, and without a price.
    """
    from vllm_capacity.render.report.reprice import repriced

    assumed = pricing(price, price_rules=price_rules)
    return repriced(Path(page), assumed, gpus_per_engine=gpus_per_engine)


def what_if(
    *,
    model: str,
    from_gpu: str,
    to_gpu: str,
    output_tokens_per_second: float,
    input_tokens: float,
    output_tokens: float,
    gpus: int = 1,
    dtype: str | None = None,
    to_dtype: str | None = None,
    clients: float | None = None,
    requests_per_second: float | None = None,
    at_clients: float | None = None,
    at_requests_per_second: float | None = None,
    itl_seconds: float | None = None,
    ttft_seconds: float | None = None,
    to_gpus: int | None = None,
    engine_version: str | None = None,
    to_engine_version: str | None = None,
    kv_dtype: str = "auto",
    to_kv_dtype: str | None = None,
    price: float | str | None = None,
    to_price: float | str | None = None,
) -> WhatIf:
    """Output tokens per second and latencies on another GPU, from a throughput measured on one.

    `clients` or `requests_per_second`: the load during the measurement; `at_…`: the load to predict
    for on the other GPU (or on the same one), by default the same. `itl_seconds` and `ttft_seconds`
    are mean latencies measured with it. `to_gpus`: that many GPUs, in the split into engines with
    the highest throughput (`splits`); else one engine of `gpus`. Given two engine versions, the
    effect of the change on published runs of the model is included; if there are none, the band is
    wider. `kv_dtype` is the type of the KV cache (auto: 16 bits), `to_kv_dtype` that on the other
    side (default: the same). `price` and `to_price` are the GPU prices of both sides, as in
    `analyze` (default: the offers of the price list): `choice` is which side gives more tokens per
    dollar, and what would change that. Unknown, with the reason, if no honest prediction is
    possible; InputError for unknown names.
    """
    from vllm_capacity.verdicts.hardware.elsewhere import answer_elsewhere
    from vllm_capacity.verdicts.hardware.question import question_of

    question = question_of(
        model=model,
        from_gpu=from_gpu,
        to_gpu=to_gpu,
        output_tokens_per_second=output_tokens_per_second,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        gpus=gpus,
        dtype=dtype,
        to_dtype=to_dtype,
        clients=clients,
        requests_per_second=requests_per_second,
        at_clients=at_clients,
        at_requests_per_second=at_requests_per_second,
        itl_seconds=itl_seconds,
        ttft_seconds=ttft_seconds,
        kv_dtype=kv_dtype,
        to_kv_dtype=to_kv_dtype,
    )
    return answer_elsewhere(
        question,
        to_gpus=to_gpus,
        engine_version=engine_version,
        to_engine_version=to_engine_version,
        usd_per_gpu_hour=pricing(price).usd_per_gpu_hour,
        to_usd_per_gpu_hour=pricing(to_price).usd_per_gpu_hour,
    )


def use_facts(folder: str | Path | None) -> None:
    """Give your own GPUs, models and prices precedence over the shipped ones; None: undo that.

    `folder` has CSV files named like the tables of data/: gpu_specs.csv, llms.csv, gpu_prices.csv,
    gpu_architectures.csv. InputError if the folder does not exist.
    """
    from vllm_capacity.facts.tables import use_own_rows

    if folder is not None and not Path(folder).is_dir():
        raise InputError(f"No folder {str(folder)!r} of facts.")
    use_own_rows(None if folder is None else Path(folder))


def fit(loads: pl.DataFrame | str | Path) -> Saturation:
    """The capacity measured in a table of loads, or extrapolated from it.

    A frame or CSV with running_requests (or clients) and output_tokens_per_second, or the results
    of a load test: JSON of guidellm, vllm bench, aiperf or inference-perf, or a folder of it. For
    optional columns see `vllm-capacity fit --help`. InputError for a table without the required
    ones.
    """
    from vllm_capacity.verdicts.saturation.load_test import fit_points

    return fit_points(_load_frame(loads))


def fit_at(loads: pl.DataFrame | str | Path, clients: float) -> AtLoad:
    """The throughput and latency at a concurrency, from a table of other loads (as in `fit`)."""
    from vllm_capacity.verdicts.saturation import at_load

    return at_load.fit_at(_load_frame(loads), clients)


def next_loads(
    loads: pl.DataFrame | str | Path, *, most_clients: float | None = None
) -> tuple[NextLoad, ...]:
    """The one or two loads to test next, given a table of loads (as in `fit`).

    Empty if none would narrow the capacity much.
    """
    from vllm_capacity.verdicts.saturation import next_load

    return next_load.next_loads(_load_frame(loads), most_clients=most_clients)


def _load_frame(loads: pl.DataFrame | str | Path) -> pl.DataFrame:
    from vllm_capacity.sources.loadtests import read_loads

    return loads if isinstance(loads, pl.DataFrame) else read_loads(Path(loads))


def forecast(
    series: str | Path,
    column: str = "requests",
    *,
    step: Duration = "1h",
    horizon: Duration = "24h",
) -> Forecast:
    """The demand ahead, from a CSV with ts (or ts_seconds) and a column of counts.

    If no forecast is possible, its `reason` says why; InputError for any other file.
    """
    from vllm_capacity.sources.demand import read_demand
    from vllm_capacity.verdicts.demand.forecast import forecast_demand

    demand = read_demand(Path(series), column)
    return forecast_demand(
        demand.frame,
        column="value",
        step_seconds=_seconds(step),
        horizon_seconds=_seconds(horizon),
    )


def _seconds(duration: Duration) -> float:
    if isinstance(duration, timedelta):
        return duration.total_seconds()
    if isinstance(duration, str):
        return parse_duration_seconds(duration)
    if isinstance(duration, bool) or not isinstance(duration, int | float):
        raise InputError(f"A duration is text such as '90m', or seconds, not {duration!r}.")
    return float(duration)


def _instant(time: Instant, day: datetime) -> datetime | None:
    """A UTC datetime from text; a time of day alone is on `day`."""
    if time is None:
        return None
    if isinstance(time, datetime):
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    if not isinstance(time, str):
        raise InputError(f"A time is ISO 8601 text, or a datetime, not {time!r}.")
    is_of_day = "-" not in time and "T" not in time and ":" in time
    return parse_instant(f"{day:%Y-%m-%d}T{time}" if is_of_day else time)


def _requested(
    start: Instant, end: Instant, duration: Duration | None, now: datetime
) -> TimeRange | None:
    if duration is not None:
        if start is not None or end is not None:
            raise InputError("Give either last, or start and end.")
        text = duration if isinstance(duration, str) else f"{_seconds(duration):g}s"
        return last(text, now=now)
    first, until = _instant(start, now), _instant(end, now)
    if first is None and until is None:
        return None
    if first is None or until is None:
        raise InputError("Give start and end together (or last).")
    return TimeRange(first, until)


def _span(time_range: TimeRange) -> str:
    first, until = time_range.start, time_range.end
    if first.date() == until.date():
        return f"{first:%-d %b %Y %H:%M}–{until:%H:%M} UTC"
    return f"{first:%-d %b %Y %H:%M} to {until:%-d %b %Y %H:%M} UTC"


if _own := os.environ.get("VLLM_CAPACITY_FACTS"):  # also in the notebooks that `report` runs
    use_facts(_own)
