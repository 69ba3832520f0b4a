"""Broken and hostile telemetry: a clear message or an honest unknown, never a wrong value."""

import gzip
import json
import math

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from vllm_capacity.analysis import Analysis
from vllm_capacity.errors import CapacityError
from vllm_capacity.figures import traffic
from vllm_capacity.sources.exposition import Scrape, ScrapeReader, parse_families, read_scrapes
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window

FEW = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
TOKENS = "vllm:generation_tokens_total"
LABEL_VALUES = st.text(min_size=0, max_size=300) | st.sampled_from(
    ['a"b', "a\\b", "a\nb", "a}b{", "<script>alert(1)</script>", "x" * 300, "🦙", "'; drop table"]
)
NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.integers(0, 2**70).map(float)


def escaped(text):
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def exposition(value, model="m", finished=0.0):
    name = escaped(model)
    return (
        f"# TYPE {TOKENS} counter\n"
        f'{TOKENS}{{engine="0",model_name="{name}"}} {value}\n'
        "# TYPE vllm:request_success_total counter\n"
        f'vllm:request_success_total{{engine="0",finished_reason="stop",model_name="{name}"}} '
        f"{finished}\n"
    )


def analyzed(tmp_path_factory, scrapes):
    """The analysis of these (t, text) scrapes; None where an error says why there is none."""
    folder = tmp_path_factory.mktemp("fuzz")
    reader = ScrapeReader()
    for t, text in scrapes:
        reader.add(Scrape(t, "vllm", 200, text))
    try:
        return Analysis.of(open_window(write_window(folder / "w", reader.buffer.rows(), {})))
    except CapacityError:
        return None


def answered(tmp_path_factory, scrapes):
    """The whole answer over these scrapes; None where an error says why there is none."""
    analysis = analyzed(tmp_path_factory, scrapes)
    try:
        return None if analysis is None else analysis.answer.as_dict()
    except CapacityError:
        return None


def tokens_of(analysis):
    """The generated tokens alone, at a fifth of the time of the whole answer."""
    return traffic.total(analysis.counters, TOKENS)


def complaint(function, *args):
    """The error for bad input; None if it is good. Only our own errors are caught."""
    try:
        function(*args)
    except CapacityError as error:
        return str(error)
    return None


def assert_finite(value):
    if isinstance(value, dict):
        for inner in value.values():
            assert_finite(inner)
    elif isinstance(value, list):
        for inner in value:
            assert_finite(inner)
    elif isinstance(value, float):
        assert math.isfinite(value)


def exact_increase(values):
    """The plain definition: drops count whole, non-finite values are skipped."""
    seen = [value for value in values if math.isfinite(value)]
    if not seen:
        return None
    total, before = 0.0, seen[0]
    for value in seen[1:]:
        total += value - before if value >= before else value
        before = value
    return total


@FEW
@given(
    values=st.lists(st.integers(0, 10**6).map(float) | st.just(math.nan), min_size=1, max_size=8)
)
def test_any_counter_history_gives_the_exact_increase(tmp_path_factory, values):
    analysis = analyzed(
        tmp_path_factory, [(1e9 + 2 * i, exposition(v, finished=1.0)) for i, v in enumerate(values)]
    )
    assert tokens_of(analysis) == exact_increase(values)


@FEW
@given(values=st.lists(NUMBERS, min_size=1, max_size=5), model=LABEL_VALUES)
@example(values=[0.0, 1.7976931348623157e308, 0.0], model="m")
def test_any_value_and_label_gives_finite_figures_or_none(tmp_path_factory, values, model):
    scrapes = [(1e9 + 2 * i, exposition(v, model, finished=i)) for i, v in enumerate(values)]
    result = answered(tmp_path_factory, scrapes)
    assert_finite(result or {})


@FEW
@given(times=st.lists(st.integers(0, 30), min_size=2, max_size=8))
def test_clocks_that_go_backwards_never_add_tokens(tmp_path_factory, times):
    """The counter stands for the time it was read at: in any order it grew by the span of times."""
    analysis = analyzed(
        tmp_path_factory, [(1e9 + t, exposition(float(t), finished=1.0)) for t in times]
    )
    if analysis is not None:
        assert tokens_of(analysis) == max(times) - min(times)


@FEW
@given(junk=st.text(max_size=200), cut=st.integers(0, 200))
def test_any_text_parses_or_is_refused(junk, cut):
    for text in (junk, exposition(1.0)[:cut] + junk):
        output = complaint(parse_families, text)
        assert output is None or "Prometheus text" in output


@FEW
@given(data=st.binary(max_size=300), cut=st.integers(1, 400), compress=st.booleans())
def test_any_file_is_read_or_refused(tmp_path_factory, data, cut, compress):
    line = json.dumps({"t": 1e9, "target": "v", "status": 200, "text": exposition(1.0)}).encode()
    whole = gzip.compress(line + b"\n" + data) if compress else line + b"\n" + data
    for content in (data, whole, whole[: -min(cut, len(whole) - 1)]):
        path = tmp_path_factory.mktemp("fuzz") / "s"
        path.write_bytes(content)
        output = complaint(read_scrapes, path)
        assert output is None or str(path) in output


BOUNDS = st.lists(st.sampled_from([0.1, 0.5, 1.0, 2.0, 5.0]), min_size=1, unique=True).map(sorted)


def histogram(bounds, counts):
    cumulative, lines = 0, ["# TYPE vllm:time_to_first_token_seconds histogram"]
    for edge, count in zip([*bounds, "+Inf"], counts, strict=True):
        cumulative += count
        lines.append(
            f'vllm:time_to_first_token_seconds_bucket{{engine="0",le="{edge}"}} {cumulative}'
        )
    lines.append(f'vllm:time_to_first_token_seconds_count{{engine="0"}} {cumulative}')
    lines.append(f'vllm:time_to_first_token_seconds_sum{{engine="0"}} {cumulative * 0.3}')
    return "\n".join(lines) + "\n"


@FEW
@given(data=st.data(), first=BOUNDS, second=BOUNDS)
def test_unequal_bounds_never_put_a_quantile_outside_its_bounds(
    tmp_path_factory, data, first, second
):
    def counts(bounds):
        many = st.lists(st.integers(0, 50), min_size=len(bounds) + 1, max_size=len(bounds) + 1)
        return data.draw(many)

    zero = [0] * (len(first) + 1)
    texts = [
        histogram(first, zero),
        histogram(first, counts(first)),
        histogram(second, counts(second)),
    ]
    scrapes = [(1e9 + 2 * i, exposition(1.0) + text) for i, text in enumerate(texts)]
    found = analyzed(tmp_path_factory, scrapes).latency.ttft
    for quantile in (found.p50, found.p95, found.p99):
        if quantile.value is not None:
            assert quantile.lower <= quantile.value <= quantile.upper
            assert quantile.lower <= quantile.estimate <= quantile.upper


@pytest.mark.parametrize("start", [2**53 - 4, 2**60])
def test_counters_above_2_to_the_53_are_in_the_quality_report(tmp_path_factory, start):
    scrapes = [(1e9 + 2 * i, exposition(float(start + 4 * i), finished=1.0)) for i in range(4)]
    result = answered(tmp_path_factory, scrapes)
    errors = [f["effect"] for f in result["quality"] if f["severity"] == "error"]
    assert any("2^53" in effect for effect in errors)
