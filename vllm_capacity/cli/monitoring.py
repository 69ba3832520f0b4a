"""`rules` and `dashboard`: files for Prometheus and Grafana."""

from __future__ import annotations

import math
from pathlib import Path

import click

from vllm_capacity.assumptions import Slo
from vllm_capacity.cli.options import FILE, bounded, file_to_write
from vllm_capacity.cli.options.settings import setting_options, taken
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate, Kind

_OUT = click.option(
    "--out",
    type=FILE,
    callback=file_to_write,
    help="File to write; default: standard output.",
)
_PRICE = click.option(
    "--usd-per-hour", type=float, callback=bounded, help="USD per GPU-hour, for cost figures."
)
_GPUS = click.option(
    "--gpus-per-engine", type=float, default=1.0, callback=bounded, help="GPUs per engine."
)


@click.command(short_help="Print recording and alerting rules for Prometheus.")
@click.option(
    "--above", multiple=True, metavar="ALERT=NUMBER", help="Change a rule's threshold; repeatable."
)
@click.option(
    "--below",
    multiple=True,
    metavar="ALERT=NUMBER",
    help="Change the threshold of headroom; repeatable.",
)
@setting_options(Slo)
@click.option(
    "--capacity",
    "capacities",
    multiple=True,
    metavar="[MODEL=]TOKENS_PER_SECOND",
    help="Output tokens/s of one engine, for headroom and idle cost: 298, or '288 to 308'; "
    "repeatable, one per model.",
)
@click.option("--window", help="Take each model's capacity from this window.")
@_PRICE
@_GPUS
@_OUT
def rules(
    above: tuple[str, ...],
    below: tuple[str, ...],
    capacities: tuple[str, ...],
    window: str | None,
    usd_per_hour: float | None,
    gpus_per_engine: float,
    out: Path | None,
    **given: object,
) -> None:
    """Print rules for Prometheus: vLLM's figures by target and model, and alerts on them.

    Alerts are those of `vllm-capacity alerts` that a query can evaluate, with the same --above;
    with --slo-ttft and --slo-itl also p95 above its target, and the burn rate of its error budget.
    With --capacity (one engine's, with its interval, from `figures`) also --below headroom=0.2 and
    --above idle-cost=50, which fire only if certain. If models differ, give --capacity MODEL=298
    for each, or --window to take them from a window. Check the file with `promtool check rules`.
    """
    from vllm_capacity.cli.alerts import changed_rules
    from vllm_capacity.render.exports.monitoring import rules_yaml

    _check_price(usd_per_hour, gpus_per_engine)
    text = rules_yaml(
        changed_rules(above, below),
        slo=taken(Slo, given),
        usd_per_gpu_hour=usd_per_hour,
        gpus_per_engine=gpus_per_engine,
        capacities=_capacities(window, capacities),
    )
    _put(text, out)


@click.command(short_help="Print a Grafana dashboard of vLLM's capacity and cost.")
@_PRICE
@_GPUS
@_OUT
def dashboard(usd_per_hour: float | None, gpus_per_engine: float, out: Path | None) -> None:
    """Print a dashboard (JSON) to import into Grafana; it queries a Prometheus with vLLM."""
    from vllm_capacity.render.exports.monitoring import dashboard_json

    _check_price(usd_per_hour, gpus_per_engine)
    _put(dashboard_json(usd_per_hour, gpus_per_engine), out)


def _capacities(window: str | None, texts: tuple[str, ...]) -> dict[str, Estimate]:
    """The capacity of an engine by model: as given, else from the window.

    Models of the window without a capacity are reported on stderr.
    """
    from vllm_capacity.render.exports.monitoring import ANY_MODEL

    given: dict[str, Estimate] = {}
    for text in texts:
        model, _, number = text.rpartition("=")
        if (model or ANY_MODEL) in given:
            raise InputError(f"--capacity is given twice for {model or 'all models'}.")
        given[model or ANY_MODEL] = _capacity(number)
    if window is None:
        return given
    from vllm_capacity.analysis import Analysis
    from vllm_capacity.telemetry.window import open_window

    found = Analysis.of(open_window(window)).capacity_by_model
    for model, capacity in found.items():
        if capacity.is_unknown and not {model, ANY_MODEL} & given.keys():
            click.echo(
                f"vllm-capacity: no rules on headroom and idle cost of {model}: {capacity.reason}. "
                f"Give it with --capacity {model}=….",
                err=True,
            )
    return {name: each for name, each in found.items() if not each.is_unknown} | given


def _capacity(text: str) -> Estimate:
    """The capacity in a text, a number or `288 to 308`; InputError for other text."""
    low, _, high = text.partition(" to ")
    try:
        ends = [float(low), float(high or low)]
    except ValueError:
        ends = []
    if not ends or not 0 < ends[0] <= ends[1] < math.inf:
        raise InputError(f"Cannot read --capacity {text!r}; try 298, or '288 to 308'.")
    return Estimate.known(ends[0], sum(ends) / 2, ends[1], kind=Kind.GIVEN)


def _check_price(usd_per_hour: float | None, gpus_per_engine: float) -> None:
    if usd_per_hour is not None and usd_per_hour <= 0:
        raise InputError(f"--usd-per-hour must be above 0, not {usd_per_hour:g}.")
    if gpus_per_engine <= 0:
        raise InputError(f"--gpus-per-engine must be above 0, not {gpus_per_engine:g}.")


def _put(text: str, out: Path | None) -> None:
    from vllm_capacity.render.report.files import write_whole

    if out is None:
        click.echo(text, nl=False)
        return
    write_whole(out, text)
    click.echo(out)
