"""`vllm-capacity simulate`: a named scenario into a window, or a file of saved scrapes."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterable
from pathlib import Path

import click

from vllm_capacity.cli.options import local_path
from vllm_capacity.errors import InputError
from vllm_capacity.telemetry.store import reserved, write_window
from vllm_simulator.fleets import FLEETS, FleetScenario, run_fleet
from vllm_simulator.fleets import provenance as fleet_provenance
from vllm_simulator.scenarios import SCENARIOS, scenario
from vllm_simulator.simulate import Outcome, provenance, run_scenario

_KNOWN = {known.name: known.about for known in SCENARIOS} | {
    known.name: known.about for known in FLEETS
}
_NAMES = "\n\n".join(f"{name}: {about}" for name, about in _KNOWN.items())


@click.command(
    epilog=f"Scenarios:\n\n{_NAMES}",
    short_help="Write a simulated engine's window: example data, not telemetry.",
)
@click.argument("scenario_name", metavar="SCENARIO")
@click.option(
    "--to",
    "target",
    type=click.Path(path_type=Path),
    required=True,
    callback=local_path,
    help="The window folder to write; a name ending in .jsonl or .jsonl.gz gets saved scrapes.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the random numbers.")
@click.option(
    "--requests",
    "requests_path",
    type=click.Path(path_type=Path),
    callback=local_path,
    help="Also write every request as Parquet: the ground truth behind the metrics.",
)
def simulate(
    scenario_name: str, target: Path, seed: int | None, requests_path: Path | None
) -> None:
    """Run SCENARIO on the simulated engine and save what a scraper would have seen.

    The result is labelled as simulated wherever it is shown.
    """
    fleet = next((each for each in FLEETS if each.name == scenario_name), None)
    chosen = fleet or scenario(scenario_name)
    for path in (target, requests_path):
        if path is not None and path.exists():
            raise InputError(f"{path} exists already. Choose another name, or remove it first.")
    is_text = target.name.endswith((".jsonl", ".jsonl.gz"))
    if isinstance(chosen, FleetScenario):
        if is_text:
            raise InputError(f"A fleet is written as a window folder only, not as {target.name}.")
        outcome, note = run_fleet(chosen, seed=seed), fleet_provenance(chosen, seed)
    else:
        outcome = run_scenario(chosen, seed=seed, as_text=is_text)
        note = provenance(chosen, seed)
    if outcome.rows is not None:
        write_window(target, outcome.rows, note)
    else:
        _write_lines(target, outcome.lines)
    if requests_path is not None:
        _write_requests(requests_path, outcome)
    ended = outcome.requests.height
    click.echo(f"{target}: simulated, {len(chosen.scrape_times)} scrapes, {ended} requests ended")


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    text = "".join(lines).encode()
    # mtime 0: the same scenario and seed give the same bytes.
    body = gzip.compress(text, mtime=0) if path.suffix == ".gz" else text
    _write_whole(path, lambda partial: partial.write_bytes(body))


def _write_requests(path: Path, outcome: Outcome) -> None:
    _write_whole(path, outcome.requests.write_parquet)


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    with reserved(path) as place:
        place.staging.mkdir()
        partial = place.staging / path.name
        write(partial)
        partial.replace(path)
