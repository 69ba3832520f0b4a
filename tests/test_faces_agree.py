"""All figures of a fleet come from one computation: every output agrees to the last digit.

Over made fleets (two models, a pod replaced, idle members, capacities borrowed from peers):
`figures`, `cost` and `plan` as JSON, Python, the tiles of a notebook, what a page says of itself,
and the index.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from made_fleet import REPLACED_AT, SECONDS, lopsided, made_fleet

import vllm_capacity as vc
from tests.truth_server.fleets import Fleet, Kept, write
from vllm_capacity.analysis import Analysis
from vllm_capacity.cli import cli
from vllm_capacity.record import plain
from vllm_capacity.render.report.metadata import Metadata, SummaryLine, Tiles, page_metadata
from vllm_capacity.render.report.page import index_html, page_html
from vllm_capacity.render.sections.header import tiles, tiles_of

TWO_MODELS, BORROWING = (0, 1), "borrowing"
SEEDS = (*TWO_MODELS, BORROWING)
PRICE = ("--price", "2")


@dataclass(frozen=True)
class Faces:
    """A simulated fleet: its window, what was really served, and how its commands are called."""

    path: Path
    kept: dict[str, Kept]
    answers: dict[tuple[str, ...], dict[str, Any]] = field(default_factory=dict)

    @cached_property
    def analysis(self) -> Analysis:
        """The analysis that a notebook makes of the window."""
        return vc.open(self.path).analyze(price=2.0)

    def said(self, *verb: str) -> dict[str, Any]:
        if verb not in self.answers:
            command = [verb[0], str(self.path), *PRICE, *verb[1:], "--json"]
            output = CliRunner().invoke(cli, command, catch_exceptions=False).output
            self.answers[verb] = json.loads(output)
        return self.answers[verb]


def made(name: int | str) -> Fleet:
    """Two models by their seed, or eight replicas of which six are idle: they borrow."""
    if isinstance(name, int):
        return made_fleet(name)
    found = lopsided(0)
    (service,) = found.services
    teams = [{"team": "ab"[n % 2], "pod": f"gpu-{n}"} for n in range(len(service.members))]
    own = zip(service.members, teams, strict=True)
    members = tuple(replace(member, labels=labels) for member, labels in own)
    return replace(found, services=(replace(service, members=members),))


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int | str], Faces]:
    known: dict[int | str, Faces] = {}

    def of(seed: int | str) -> Faces:
        if seed not in known:
            path = tmp_path_factory.mktemp("fleets") / f"made-{seed}"
            known[seed] = Faces(path, write(path, made(seed)))
        return known[seed]

    return of


@pytest.mark.parametrize("seed", SEEDS)
def test_figures_cost_and_plan_agree(faces, seed):
    one = faces(seed)
    figures, cost, plan = one.said("figures"), one.said("cost"), one.said("plan")
    groups = one.said("figures", "--by", "engine")
    assert cost["whole"] == groups["whole"]["cost"] == figures["cost"]
    assert cost["surplus"] == plan["surplus"]
    assert plan["window"] == figures["window"]
    used, free = figures["cost"]["utilization"], figures["saturation"]["headroom_ratio"]
    for end, other in (("low", "high"), ("mid", "mid"), ("high", "low")):
        assert (free[end] is None) == (used[other] is None)
        assert used[other] is None or free[end] == 1 - used[other]
    capacity = figures["saturation"]["capacity_output_tokens_per_second"]["low"]
    each = plan["capacity_output_tokens_per_second"]["low"]
    assert each * figures["window"]["mean_engines"] == pytest.approx(capacity, rel=1e-12)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_advice_is_the_surplus(faces, seed):
    one = faces(seed)
    surplus, advice = one.said("cost")["surplus"], one.said("figures")["advice"]
    removable = surplus["removable_replicas"]["low"] or 0.0
    found = [each["effect"]["low"] for each in advice if each["setting"] == "replicas"]
    assert found == ([removable / surplus["replicas"]] if removable else [])


@pytest.mark.parametrize("seed", SEEDS)
def test_the_parts_of_a_surplus_are_its_whole(faces, seed):
    surplus = faces(seed).said("plan")["surplus"]
    parts = surplus["by_model"].values()
    for name in ("needed_replicas", "removable_replicas", "usd_per_day"):
        lows = [part[name]["low"] for part in parts]
        if None not in lows:
            assert surplus[name]["low"] == math.fsum(lows)
    assert surplus["replicas"] == pytest.approx(sum(part["replicas"] for part in parts))


@pytest.mark.parametrize("seed", SEEDS)
def test_the_models_of_a_plan_are_its_whole(faces, seed):
    planned, models = (
        faces(seed).said("plan"),
        faces(seed).said("figures", "--by", "model")["parts"],
    )
    assert planned["by_model"].keys() == planned["surplus"]["by_model"].keys() == models.keys()
    for end in ("low", "mid", "high"):
        ends = [part["replicas"][end] for part in planned["by_model"].values()]
        assert None in ends or planned["replicas"][end] == math.fsum(ends)
    for name, part in planned["by_model"].items():
        each = planned["surplus"]["by_model"][name]["replica_output_tokens_per_second"]
        for end in ("low", "high"):
            found = part["capacity_output_tokens_per_second"][end]
            assert (found is None) == (each[end] is None)
            assert found is None or found == pytest.approx(each[end], rel=1e-12)


def test_idle_replicas_use_peers_in_every_output(faces):
    one = faces(BORROWING)
    assert one.said("figures")["saturation"]["capacity_kind"] == "borrowed"
    parts = one.said("figures", "--by", "engine")["parts"]
    idle = [part for part in parts.values() if not part["generation_tokens"]]
    assert len(idle) == 6
    assert all(part["cost"]["utilization"]["high"] == 0 for part in idle)
    whole = one.said("figures")["cost"]["idle_usd"]
    for end in ("low", "high"):
        assert sum(part["cost"]["idle_usd"][end] for part in parts.values()) == pytest.approx(
            whole[end], rel=1e-9
        )


@pytest.mark.parametrize("seed", SEEDS)
def test_a_notebook_says_what_the_command_line_says(faces, seed):
    one = faces(seed)
    analysis = one.analysis
    assert plain(analysis.answer.cost) == one.said("figures")["cost"]
    assert plain(analysis.answer.saturation) == one.said("figures")["saturation"]
    assert plain(analysis.surplus()) == one.said("cost")["surplus"]
    shown = msgspec.convert(tiles(analysis).content, Tiles)
    assert shown.tiles == tiles_of(analysis.answer)
    for tile in shown.tiles:
        for found in _estimates(one.said("figures"), tile.figure):
            assert (tile.low, tile.mid, tile.high) == (found["low"], found["mid"], found["high"])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_page_and_the_index_show_what_figures_says(faces, seed, tmp_path):
    one = faces(seed)
    said = one.said("figures")
    metadata = Metadata(SummaryLine("made"), title="made", tiles=tiles_of(one.analysis.answer))
    page = tmp_path / "made.html"
    page.write_text(
        page_html(title="made", sections=[], runtime="", metadata=metadata, command="", made="")
    )
    read = page_metadata(page)
    assert read is not None
    assert read.tiles == metadata.tiles
    index = index_html([("made.html", read)])
    result = {name: list(_estimates(said, name)) for name in read.by_figure}
    assert (
        sum(map(len, result.values())) >= 5
    )  # the other tiles, only on the page, derive from these
    for name, tile in read.by_figure.items():
        if not result[name]:
            continue
        (found,) = result[name]
        assert (tile.low, tile.mid, tile.high) == (found["low"], found["mid"], found["high"])
        if tile.is_known and tile.figure == "utilization":
            assert tile.value in index


def _estimates(said: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """The estimate of that name in the answer, wherever it stands."""
    for part in ("cost", "saturation", "slo"):
        if name in said[part]:
            yield said[part][name]


@pytest.mark.parametrize("by", ["engine", "instance", "model", "team", "pod"])
@pytest.mark.parametrize("seed", SEEDS)
def test_parts_add_up_to_the_last_request_and_cent(faces, seed, by):
    one = faces(seed)
    groups, cost = one.said("figures", "--by", by), one.said("cost", "--by", by)
    whole, parts = groups["whole"], groups["parts"].values()
    for name in ("successful_requests", "prompt_tokens", "generation_tokens"):
        assert sum(part[name] for part in parts) == whole[name]
    for name in ("billed_hours", "output_tokens_per_second"):
        assert sum(part[name] for part in parts) == pytest.approx(whole[name], rel=1e-12)
    for name in ("allocation_usd", "idle_usd"):
        lows = [part["cost"][name]["low"] for part in parts]
        assert sum(lows) == pytest.approx(whole["cost"][name]["low"], abs=1e-9)
    assert cost["parts"] == {name: part["cost"] for name, part in groups["parts"].items()}
    assert whole["cost"] == one.said("figures")["cost"]


def test_a_pod_that_was_replaced_is_one_replica_billed_by_the_hours_each_lived(faces):
    one = faces(0)
    pods, slots = (one.said("figures", "--by", by)["parts"] for by in ("pod", "deployment"))
    old, new = (pods[name]["billed_hours"] * 3600 for name in ("chat-3", "chat-4"))
    assert old == pytest.approx(REPLACED_AT, abs=15)
    assert new == pytest.approx(SECONDS - REPLACED_AT - 30, abs=15)
    assert slots["chat"]["billed_hours"] * 3600 == pytest.approx(4 * SECONDS - 30, abs=75)
    assert one.said("cost")["surplus"]["by_model"]["chat"]["replicas"] == pytest.approx(4, abs=0.1)
    counted = sum(part["generation_tokens"] for part in slots.values())
    served = sum(each.output_tokens for each in one.kept.values())
    assert counted == pytest.approx(served, rel=0.02)
