"""Settings: each field below is an option of commands and a key of `vllm-capacity.toml`.

A command-line option overrides the file. A field's metadata has everything else about it: its
option, its help, and a check of its value beyond the type. `settings_file.py` reads the file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_type_hints

import click
from click.core import ParameterSource

from vllm_capacity.assumptions import Slo
from vllm_capacity.cli.options import FILE, bounded, local_path, stream_name
from vllm_capacity.timerange import TimeRange, parse_duration_seconds, time_zone

if TYPE_CHECKING:
    from vllm_capacity.live.pull import PullOrder

_Settings = TypeVar("_Settings")
_Verb = TypeVar("_Verb", bound=Callable[..., Any])


def _about(
    option: str,
    help: str,
    *,
    key: str = "",
    former: str = "",
    check: Callable[[Any], object] | None = None,
    **click_arguments: Any,  # noqa: ANN401  what click.option takes
) -> dict[str, Any]:
    """A field's metadata: option, help, its key if that is not its name, and its `former` option.

    Former options, and keys of the same name, still work.
    """
    return {
        **{"option": option, "former": former, "help": help, "key": key, "check": check},
        "click": click_arguments,
    }


def _check_price(words: str) -> None:
    from vllm_capacity.assumptions import pricing

    pricing(words)


def _check_fleet(path: Path) -> None:
    from vllm_capacity.facts.fleet import load_fleet

    load_fleet(path)


def _check_origin(origin: str) -> None:
    from vllm_capacity.live.access import checked_url, is_server

    if is_server(origin):
        checked_url(origin)


def _check_match(text: str) -> None:
    from vllm_capacity.selector import selector

    selector(text)


def _check_tenant(text: str) -> None:
    from vllm_capacity.live.access import secret

    secret("The tenant's token", text)


def _check_gpu(name: str) -> None:
    from vllm_capacity.facts.gpus import find_gpu

    find_gpu(name)


def _check_model(name: str) -> None:
    from vllm_capacity.facts.llms import find_llm

    find_llm(name)


def _check_recipients(urls: tuple[str, ...]) -> None:
    from vllm_capacity.live.notify import recipients

    recipients(urls, os.environ)


def _check_thresholds(changes: tuple[str, ...]) -> None:
    from vllm_capacity.cli.alerts import changed_rules

    changed_rules(changes)


def _check_lower_thresholds(changes: tuple[str, ...]) -> None:
    from vllm_capacity.cli.alerts import changed_rules

    changed_rules((), changes)


def _check_pairs(text: str) -> None:
    from vllm_capacity.sources.records import pairs

    pairs(text)


def _check_columns(text: str) -> None:
    from vllm_capacity.sources.records import given_columns
    from vllm_capacity.sources.usage import FIELDS

    given_columns(text, FIELDS)


def _check_invoice_columns(text: str) -> None:
    from vllm_capacity.sources.invoices import FIELDS
    from vllm_capacity.sources.records import given_columns

    given_columns(text, FIELDS)


@dataclass(frozen=True)
class SourceSettings:
    """[source]: where telemetry comes from."""

    origin: str | None = field(
        default=None,
        metadata=_about(
            "--from",
            "Source: URL of a server, or path or s3:// URL of a Parseable store's root.",
            key="from",
            check=_check_origin,
        ),
    )
    stream: str | None = field(
        default=None,
        metadata=_about(
            "--stream", "Parseable's stream; not needed for Prometheus.", callback=stream_name
        ),
    )
    is_full: bool | None = field(
        default=None,
        metadata=_about(
            "--full/--downsampled",
            "Pull every sample, or, from 3 h on, only one state of each counter per minute.",
            key="full",
            former=" /--thinned",  # without the space, click would split at a semicolon
        ),
    )
    profile: Path | None = field(
        default=None, metadata=_about("--profile", "File with credentials, mode 0600.", type=FILE)
    )
    match: str | None = field(
        default=None,
        metadata=_about(
            "--match",
            "Only these series of a Prometheus, such as '{namespace=\"team-a\"}'.",
            check=_check_match,
        ),
    )
    tenant: str | None = field(
        default=None,
        metadata=_about("--tenant", "X-Scope-OrgID for Mimir or Thanos.", check=_check_tenant),
    )
    ca: Path | None = field(
        default=None,
        metadata=_about("--ca", "Certificates to trust instead of the system's.", type=FILE),
    )

    def pull_order(
        self, time_range: TimeRange | None, late: timedelta, *, is_full: bool | None
    ) -> PullOrder:
        """The order to pull that time range from this source; `is_full` as in `PullOrder`."""
        from vllm_capacity.live.pull import PullOrder  # httpx and all: not for --help

        return PullOrder(
            self.origin,
            self.stream,
            time_range,
            is_full,
            late,
            self.profile,
            self.match,
            self.tenant,
            self.ca,
        )


@dataclass(frozen=True)
class DaySettings:
    """[days]: which days are pulled, kept and reported."""

    last: str = field(
        default="24h",
        metadata=_about(
            "--last",
            "Report each day within the last 24h, 7d, … that is complete.",
            check=parse_duration_seconds,
            show_default=True,
        ),
    )
    has_today: bool = field(
        default=False,
        metadata=_about("--today", "Also report today so far.", key="today", is_flag=True),
    )
    zone: str = field(
        default="UTC",
        metadata=_about(
            "--tz",
            "Time zone for days, hours of the week and charts, such as Europe/Berlin.",
            key="time_zone",
            check=time_zone,
            show_default=True,
        ),
    )
    late: str = field(
        default="1d",
        metadata=_about(
            "--late",
            "How late samples may arrive; until then, a day is pulled again.",
            check=parse_duration_seconds,
            show_default=True,
        ),
    )
    windows: Path = field(
        default=Path("windows"),
        metadata=_about(
            "--windows",
            "Folder for the daily windows.",
            show_default=True,
            type=click.Path(path_type=Path),
            callback=local_path,
        ),
    )
    keep: str | None = field(
        default=None,
        metadata=_about(
            "--keep",
            "Remove daily windows older than this, such as 30d.",
            check=parse_duration_seconds,
        ),
    )


@dataclass(frozen=True)
class PriceSettings:
    """[price]: the price of a GPU-hour (give one of the first three), and the GPUs per engine."""

    usd_per_hour: float | None = field(
        default=None,
        metadata=_about("--usd-per-hour", "Price per GPU-hour, USD."),
    )
    price: str | None = field(
        default=None,
        metadata=_about(
            "--price",
            "Words that match one row of data/gpu_prices.csv, or an interval: '1.2 to 1.9'.",
            check=_check_price,
        ),
    )
    fleet: Path | None = field(
        default=None,
        metadata=_about(
            "--fleet",
            "Mapping file with GPUs and price of each instance over time (CSV or YAML).",
            check=_check_fleet,
            type=FILE,
        ),
    )
    gpus_per_engine: float = field(
        default=1.0,
        metadata=_about("--gpus-per-engine", "GPUs per engine.", show_default=True),
    )


@dataclass(frozen=True)
class HardwareSettings:
    """[hardware]: GPU and model of the engines, if labels of their targets do not name them."""

    gpu: str | None = field(
        default=None,
        metadata=_about(
            "--gpu",
            "GPU of the engines, such as A100-80GB-PCIe; vLLM does not export it.",
            check=_check_gpu,
        ),
    )
    model: str | None = field(
        default=None,
        metadata=_about(
            "--model",
            "Model as named in data/llms.csv, if the served name differs.",
            check=_check_model,
        ),
    )


@dataclass(frozen=True)
class PageSettings:
    """[report]: where reports are written, and what they contain."""

    out: Path = field(
        default=Path("reports"),
        metadata=_about(
            "--out",
            "Folder for the report and the index.",
            show_default=True,
            type=click.Path(file_okay=False, path_type=Path),
        ),
    )
    notebook: str | None = field(
        default=None,
        metadata=_about(
            "--notebook",
            "Notebook: a path, or the name of an included one. [default: cost-report.ipynb]",
        ),
    )
    has_appendix: bool = field(
        default=False,
        metadata=_about(
            "--appendix",
            "When printing, include the tables behind the charts and how figures are computed.",
            key="appendix",
            is_flag=True,
        ),
    )
    has_pdf: bool = field(
        default=False,
        metadata=_about(
            "--pdf",
            "Also write a PDF (needs Chromium or Chrome).",
            key="pdf",
            is_flag=True,
        ),
    )
    has_rows: bool = field(
        default=False,
        metadata=_about(
            "--csv",
            "Also write all rows behind charts and tables, as PAGE.csv.zip beside the report.",
            key="csv",
            is_flag=True,
        ),
    )
    group: str | None = field(
        default=None,
        metadata=_about("--by", "Add a table by this label, such as team or namespace.", key="by"),
    )
    against: str | None = field(
        default=None,
        metadata=_about(
            "--against",
            "Compare with a window (NAME, NAME@START..END), a day, or 7d: a week earlier.",
        ),
    )


@dataclass(frozen=True)
class CostSettings:
    """[cost]: how the bill is divided."""

    by: str = field(
        default="engine",
        metadata=_about("--by", "engine, instance, model, or a label.", show_default=True),
    )


@dataclass(frozen=True)
class InvoiceSettings:
    """[invoice]: the cloud's charges, with which the bill is reconciled."""

    invoice: Path | None = field(
        default=None,
        metadata=_about(
            "--invoice",
            "The cloud's charges (CSV, Parquet), to explain the difference from the bill.",
            key="file",
            type=FILE,
        ),
    )
    invoice_columns: str = field(
        default="",
        metadata=_about(
            "--invoice-columns",
            "Column names in the invoice: cost=Charge,start=Day,end=…,hours=…",
            key="columns",
            metavar="NAME=COLUMN,…",
            check=_check_invoice_columns,
        ),
    )


@dataclass(frozen=True)
class UsageSettings:
    """[usage]: gateways' logs of requests, and how to read them (for cost by tenant)."""

    files: tuple[Path, ...] = field(
        default=(),
        metadata=_about(
            "--usage",
            "A gateway's usage log (LiteLLM, Envoy, nginx, CSV, Parquet), or a pattern such as "
            "'spend-*.csv' or 'spend-{day}.csv'; repeatable.",
            multiple=True,
            type=FILE,
        ),
    )
    columns: str = field(
        default="",
        metadata=_about(
            "--usage-columns",
            "Column names in the log: key=x-tenant,prompt=in,output=out.",
            metavar="NAME=COLUMN,…",
            check=_check_columns,
        ),
    )
    log_format: str | None = field(
        default=None,
        metadata=_about("--usage-log-format", "nginx's log_format, if the log is in that format."),
    )
    models: str = field(
        default="",
        metadata=_about(
            "--usage-models",
            "Names in the log of served models: fast=Qwen/Qwen3-8B.",
            metavar="NAME=MODEL,…",
            check=_check_pairs,
        ),
    )
    idle: str = field(
        default="shared",
        metadata=_about(
            "--idle",
            "Idle cost: shared in proportion to use, or listed separately.",
            type=click.Choice(["shared", "apart"]),
            show_default=True,
        ),
    )


@dataclass(frozen=True)
class AlertSettings:
    """[alerts]: the time range that rules evaluate, changed thresholds, and who is notified."""

    over: str = field(
        default="5m",
        metadata=_about(
            "--over", "Evaluate the window's last 5m, 1h, or `all`.", show_default=True
        ),
    )
    above: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "--above",
            "Change a rule's threshold; repeatable.",
            multiple=True,
            metavar="ALERT=NUMBER",
            check=_check_thresholds,
        ),
    )
    below: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "--below",
            "Change the threshold of headroom or days-left; repeatable.",
            multiple=True,
            metavar="ALERT=NUMBER",
            check=_check_lower_thresholds,
        ),
    )
    alertmanager: str | None = field(
        default=None,
        metadata=_about(
            "--alertmanager", "Also send alerts to this Alertmanager URL.", check=_check_origin
        ),
    )
    labels: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "--label",
            "Label to add to alerts sent to Alertmanager; repeatable.",
            multiple=True,
            metavar="NAME=VALUE",
        ),
    )
    notify: tuple[str, ...] = field(
        default=(),
        metadata=_about(
            "--notify",
            "Also notify this apprise URL; ${NAME} is an environment variable, file:PATH holds one "
            "URL per line.",
            multiple=True,
            metavar="URL",
            check=_check_recipients,
        ),
    )
    sent: Path = field(
        default=Path("vllm-capacity-sent.json"),
        metadata=_about(
            "--sent",
            "File that records what --notify sent, so that nothing is sent twice.",
            former="--told",
            show_default=True,
            type=click.Path(dir_okay=False, path_type=Path),
            callback=local_path,
        ),
    )
    lasts: str = field(
        default="25h",
        metadata=_about(
            "--lasts",
            "How long an alert stays firing in Alertmanager without an update.",
            check=parse_duration_seconds,
            show_default=True,
        ),
    )


SECTIONS: Mapping[str, type] = {
    "source": SourceSettings,
    "days": DaySettings,
    "price": PriceSettings,
    "slo": Slo,
    "hardware": HardwareSettings,
    "report": PageSettings,
    "cost": CostSettings,
    "usage": UsageSettings,
    "invoice": InvoiceSettings,
    "alerts": AlertSettings,
}
"""The tables of the settings file."""

PRICES = ("usd_per_hour", "price", "fleet")
_PUTS_OUT: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(PRICES, PRICES),
    "origin": ("stream", "is_full", "profile"),
}
"""The file's settings that a command-line option replaces, because they mean the same."""


def setting_options(*sections: type, without: str = "") -> Callable[[_Verb], _Verb]:
    """A decorator that adds these sections' options to a command; the first duplicate wins.

    `without` is the name of a setting that the command takes as an argument.
    """
    found: dict[str, tuple[type, Field[Any]]] = {}
    for section in sections:
        for one in fields(section):
            if one.name != without:
                found.setdefault(one.metadata["option"], (section, one))

    def decorated(command: _Verb) -> _Verb:
        for section, one in reversed(found.values()):
            command = _option(section, one)(command)
        return command

    return decorated


def taken(section: type[_Settings], given: Mapping[str, Any]) -> _Settings:
    """The settings of a section from a command's parameters.

    A setting in the file is left out if the command line says the same in another way.
    """
    names = {one.name for one in fields(section)}  # type: ignore[arg-type]
    return section(**{name: value for name, value in in_force(given).items() if name in names})


def in_force(given: Mapping[str, Any]) -> dict[str, Any]:
    """A command's parameters, without the file's settings that the command line replaces."""
    context = click.get_current_context(silent=True)
    if context is None:
        return dict(given)
    sources = {name: context.get_parameter_source(name) for name in given}
    typed = [name for name, where in sources.items() if where is ParameterSource.COMMANDLINE]
    put_out = {other for name in typed for other in _PUTS_OUT.get(name, ())}
    of_file = {name for name, where in sources.items() if where is ParameterSource.DEFAULT_MAP}
    return {name: None if name in put_out & of_file else value for name, value in given.items()}


def _option(section: type, one: Field[Any]) -> Callable[[_Verb], _Verb]:
    known = one.metadata
    arguments: dict[str, Any] = {"default": one.default, "help": known["help"]}
    if is_number(section, one):
        arguments |= {"type": float, "callback": bounded}
    names = [name for name in (known["option"], known.get("former")) if name]
    return click.option(*names, one.name, **arguments, **known.get("click", {}))


def is_number(section: type, one: Field[Any]) -> bool:
    """Whether a setting is a number, which options and files bound."""
    return get_type_hints(section)[one.name] in (float, float | None)
