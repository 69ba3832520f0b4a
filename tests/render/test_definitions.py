"""Each definition names what really makes its figure: found out by watching it being made."""

import inspect
from cProfile import Profile
from functools import cache
from operator import attrgetter

import pytest
from answer_by_hand import ANSWER
from polars.testing import assert_frame_equal

from vllm_capacity.analysis import Analysis
from vllm_capacity.answer import Answer
from vllm_capacity.assumptions import Assumptions, Pricing, Slo
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.plan import PlanRequest, plan
from vllm_capacity.record import Record
from vllm_capacity.render.sections.definitions import (
    CodePlace,
    definition_of,
    explanation,
    shown_definitions,
)
from vllm_capacity.render.sections.glossary import DEFINITIONS
from vllm_capacity.telemetry.window import open_window, query_text
from vllm_capacity.verdicts.cost.idle import idle_by_hour_of_week
from vllm_capacity.verdicts.demand.weeks import hours_of_week

ASSUMED = Assumptions(Pricing(Estimate.exact(1.64, "given")), Slo(2.0))
ANSWERED = attrgetter("answer")
REQUEST = PlanRequest(from_gpu="A100-80GB-SXM", model="openai/gpt-oss-20b")
MADE = {
    "cost": attrgetter("bill"),
    "saturation": attrgetter("saturation"),
    "slo": attrgetter("slo"),
    "latency": attrgetter("latency"),
    "running": (gauges := attrgetter("gauges")),
    "kv_cache_ratio": gauges,
    "plan": lambda analysis: plan(analysis, REQUEST),
    "cost_over_time": attrgetter("costs"),
    "latency_by_load": (load_curve := attrgetter("load_curve")),
    "preemptions_by_load": load_curve,
    "throughput": lambda analysis: (analysis.throughput, analysis.series),
    "idle": lambda analysis: idle_by_hour_of_week(analysis.hours),
    "hour_of_week": lambda analysis: hours_of_week(analysis.hours),
}
"""How a figure is made of an analysis, by the first name of its path; others with the answer."""


@pytest.fixture(scope="module")
def analysed(examples):
    """A fresh analysis of the sweep, in which the server was light and full."""
    window = open_window(examples / "vllm-sweep")

    def fresh():
        return Analysis.of(window.remembering(), assumptions=ASSUMED)

    return fresh


@pytest.fixture(scope="module")
def watched(analysed):
    """The functions called, and the queries asked, while what has that name is made."""

    @cache
    def watch(make):
        analysis = analysed()
        with Profile(subcalls=False, builtins=False) as profile:
            make(analysis)
        called = {entry.code for entry in profile.getstats()}
        return called, {query for _, query, _ in analysis.window.answers}

    return watch


def maker(definition):
    """How its figure is made."""
    name = (definition.paths or (definition.figure,))[0].split(".")[0]
    return MADE.get(name, ANSWERED)


@pytest.mark.parametrize("definition", DEFINITIONS, ids=[d.figure for d in DEFINITIONS])
def test_figure_is_made_by_what_its_definition_names(definition, watched):
    called, asked = watched(maker(definition))
    functions = {function for function in (*definition.made_by, *(s.read for s in definition.read))}
    assert [f.__name__ for f in functions if inspect.unwrap(f).__code__ not in called] == []
    assert {source.query for source in definition.sources} - asked == set()


def answer_paths(kind, prefix=""):
    """Every field of an answer, and of the results in it that have fields of their own."""
    for field in kind.__struct_fields__:
        value = attrgetter(prefix + field)(ANSWER)
        yield prefix + field
        if isinstance(value, Record) and not isinstance(value, Estimate):
            yield from answer_paths(value, f"{prefix}{field}.")


def is_property(member):
    return isinstance(member, property)


def aliases():
    """Every property of an answer and of the results in it."""
    yield from (name for name, _ in inspect.getmembers(Answer, is_property))
    for name in Answer.__struct_fields__:
        value = getattr(ANSWER, name)
        if isinstance(value, Record):
            found = inspect.getmembers(type(value), is_property)
            yield from (f"{name}.{each}" for each, _ in found)


WHOLES = {"schema_version", "latency", "slo", "saturation", "cost"}


@pytest.mark.parametrize("path", [*answer_paths(Answer), *aliases()])
def test_every_figure_of_an_answer_is_defined(path):
    if path not in WHOLES:
        assert definition_of(path).text


@pytest.mark.parametrize("path", [p for d in DEFINITIONS for p in d.paths if "plan." not in p])
def test_path_leads_to_a_figure(path):
    attrgetter(path)(ANSWER)


def test_figures_and_paths_are_named_once():
    names = [name for d in DEFINITIONS for name in {d.figure, *d.paths}]
    assert len(names) == len(set(names))


def test_place_is_where_the_function_stands(examples):
    root = examples.parent.parent
    for function in {function for d in DEFINITIONS for function in d.made_by}:
        place = CodePlace.of(function)
        line = (root / place.file).read_text().splitlines()[place.line - 1]
        assert line.startswith(f"def {place.name}(")


def test_explanation_has_every_requested_part(analysed):
    found = explanation(analysed(), "saturation.headroom_ratio")
    assert found.value
    assert [place.name for place in found.definition.made_by] == ["headroom", "utilization"]
    assert set(found.queries) == set(found.rows) > {"counter_increase"}
    assert all(found.queries[name] and not found.rows[name].is_empty() for name in found.rows)
    assert "vllm_capacity/verdicts/utilization.py:" in repr(found)
    assert "counter_increase" in found._repr_html_()


@pytest.mark.parametrize(
    ("path", "figure"),
    [
        pytest.param("cost.per_request", "usd_per_request", id="a property of the answer"),
        pytest.param("latency.ttft.p95.value", "ttft_seconds", id="a part of a figure"),
        pytest.param("usd_per_request", "usd_per_request", id="its own name"),
        pytest.param("plan.replicas", "replicas", id="a figure of the plan"),
        pytest.param("requests.lost.high", "lost", id="the nearest definition above it"),
    ],
)
def test_definition_is_found(path, figure):
    assert definition_of(path).figure == figure


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        pytest.param("cost.per_reqest", "Did you mean cost.per_request", id="misspelt"),
        pytest.param("capacity", "Did you mean saturation.capacity", id="its end alone"),
        pytest.param("nonsense", "There are cost.per_request,", id="nothing like it"),
    ],
)
def test_unknown_figure_is_named_with_the_nearest(path, hint):
    with pytest.raises(InputError, match=hint):
        definition_of(path)


def test_a_missing_part_of_a_figure_is_reported(analysed):
    with pytest.raises(InputError, match=r"no figure 'latency\.ttft\.p96'"):
        explanation(analysed(), "latency.ttft.p96")


def test_rows_are_those_that_the_shown_query_gives(analysed):
    analysis = analysed()
    for source in {source for definition in DEFINITIONS for source in definition.sources}:
        again = analysis.window.sql(query_text("figures", source.query), **source.bound(analysis))
        assert_frame_equal(source.rows(analysis), again)


def test_each_query_is_shown_once(analysed):
    shown = shown_definitions(analysed(), ["usd_per_request", "replicas"])
    names = [query.name for query in shown.queries]
    assert len(names) == len(set(names))
    assert {rows.query for each in shown.definitions for rows in each.rows} == set(names)
