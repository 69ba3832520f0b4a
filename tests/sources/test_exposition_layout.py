"""Texts whose layout is known are read as prometheus_client reads them, or left to it."""

import math

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from vllm_capacity.errors import ParseError
from vllm_capacity.sources.exposition import Scrape, ScrapeReader, parse_families
from vllm_capacity.sources.exposition_layout import Layout, values_of

HEADS = (
    "# HELP vllm:num_requests_running Running. ",
    "# TYPE vllm:num_requests_running gauge",
    'vllm:num_requests_running{engine="0",model_name="m"}',
    'vllm:num_requests_running{engine="1",model_name="a } \\" \\\\ \\n # b"}',
    "# TYPE vllm:generation_tokens_total counter",
    "# TYPE vllm:generation_tokens counter",
    "# TYPE vllm:generation_tokens_total gauge",
    'vllm:generation_tokens_total{engine="0",model_name="m"}',
    'vllm:generation_tokens_created{engine="0",model_name="m"}',
    "vllm:generation_tokens",
    "# TYPE vllm:time_to_first_token_seconds histogram",
    'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1"}',
    'vllm:time_to_first_token_seconds_bucket{engine="0",le="0.5"}',
    'vllm:time_to_first_token_seconds_bucket{le="+Inf",engine="0"}',
    'vllm:time_to_first_token_seconds_bucket{engine="0",le="x"}',
    'vllm:time_to_first_token_seconds_bucket{engine="0"}',
    'vllm:time_to_first_token_seconds_count{engine="0"}',
    'vllm:time_to_first_token_seconds_sum{engine="0"}',
    'vllm:time_to_first_token_seconds_created{engine="0"}',
    "process_start_time_seconds",
    "# TYPE process_start_time_seconds gauge",
    'vllm:cache_config_info{block_size="16",}',
    "# TYPE vllm:cache_config info",
    '{"vllm:lora_requests_info",max_lora="2"}',
    "python_gc",
    "# a comment",
    "#",
    "",
    " ",
    "# EOF",
)
NUMBERS = (
    *("0", "1", "2.0", "3", "5.0", "1e3", "1795492774.17", "+4", "-1", "-0", "nan", "NaN", "+Inf"),
    *("Infinity", "1_0", "0x1", "x", "", "1e400", "9" * 400, "٣", "9007199254740993", "1.5e-7"),
)
SPACES = (" ", " ", " ", " ", "  ", "\t", " \t", "", "\u00a0")
ENDS = ("", "", "", "", " ", "\t", "\r", " 1700000000000", "\t7", ' # {trace_id="x"} 0.3', "\x1f")


@st.composite
def samples(draw):
    head = draw(st.sampled_from(HEADS))
    if head.startswith("#") or not head.strip():
        return head
    number, space = draw(st.sampled_from(NUMBERS[:8])), " "
    if draw(st.integers(0, 7)) == 0:
        number, space = draw(st.sampled_from(NUMBERS)), draw(st.sampled_from(SPACES))
        return head + space + number + draw(st.sampled_from(ENDS))
    return head + space + number


@st.composite
def successors(draw, lines):
    """The same lines with other values; now and then with a line more, less or elsewhere."""
    found = []
    for line in lines:
        head, space, _ = line.rpartition(" ")
        number = draw(st.sampled_from(NUMBERS[:7]))
        if draw(st.integers(0, 20)) == 0:
            number = draw(st.sampled_from(NUMBERS)) + draw(st.sampled_from(ENDS))
        found.append(line if line.startswith("#") or not space else f"{head} {number}")
    change = draw(st.sampled_from(["", "", "", "", "more", "less", "turned"]))
    if change == "more":
        found.insert(draw(st.integers(0, len(found))), draw(samples()))
    elif change == "less":
        found = found[1:]
    elif change == "turned":
        found.reverse()
    return found


@st.composite
def texts(draw):
    lines = draw(st.lists(samples(), max_size=12))
    found = [lines]
    for _ in range(draw(st.integers(1, 4))):
        found.append(draw(successors(found[draw(st.integers(0, len(found) - 1))])))
    cuts = [draw(st.sampled_from([0, 0, 0, 0, 1, 3])) for _ in found]
    whole = ["\n".join([*lines, ""]) for lines in found]
    return [text[: len(text) - cut] for text, cut in zip(whole, cuts, strict=True)]


def parsed(text):
    try:
        return parse_families(text)
    except ParseError:
        return None


@settings(deadline=None)
@given(texts())
def test_values_by_a_layout_are_those_of_the_parser(found):
    first, *later = found
    families = parsed(first)
    if families is None:
        return
    layout = Layout.of(first, families)
    for text in later:
        values, result = layout.values(text.split("\n")), parsed(text)
        if values is not None:
            assert result is not None
            np.testing.assert_array_equal(values, values_of(result))
            assert [[s._replace(value=0) for s in f.samples] for f in result] == [
                [s._replace(value=0) for s in f.samples] for f in families
            ]
            assert [(f.name, f.type) for f in result] == [(f.name, f.type) for f in families]


def read(*found, fresh=False):
    """The rows of these texts, two seconds apart; each parsed anew with `fresh`."""
    reader = ScrapeReader()
    for number, text in enumerate(found):
        reader.add(Scrape(1_795_492_800.0 + 2 * number, "v", 200, text))
        if fresh:
            reader._known.clear()
    return reader.rows().whole()


@settings(deadline=None)
@given(texts())
def test_what_was_read_before_changes_nothing(found):
    known, fresh = read(*found), read(*found, fresh=True)
    for name in ("series", "samples", "histograms", "ingest_notes"):
        assert_frame_equal(getattr(known, name), getattr(fresh, name))


HISTOGRAM = """\
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{engine="0",le="0.1"} 3.0
vllm:time_to_first_token_seconds_bucket{engine="0",le="+Inf"} 6.0
vllm:time_to_first_token_seconds_count{engine="0"} 6.0
vllm:time_to_first_token_seconds_sum{engine="0"} 2.5
"""


@pytest.mark.parametrize(
    ("text", "is_known"),
    [
        pytest.param(HISTOGRAM.replace("2.5", "2.75"), True, id="other values"),
        pytest.param(HISTOGRAM.replace("2.5", "NaN"), True, id="a value that is no number"),
        pytest.param(HISTOGRAM.replace(" 2.5", "\t2.5"), False, id="another space"),
        pytest.param(HISTOGRAM.replace("2.5", "2.5 17"), False, id="a timestamp"),
        pytest.param(HISTOGRAM.replace("2.5", "2_5"), False, id="an underscore in a number"),
        pytest.param(HISTOGRAM.replace("histogram", "gauge"), False, id="another type"),
        pytest.param(HISTOGRAM[:-1], False, id="cut at its end"),
        pytest.param(HISTOGRAM + "\n", False, id="a line more"),
        pytest.param("", False, id="no text"),
    ],
)
def test_a_layout_knows_only_texts_that_differ_in_their_values(text, is_known):
    layout = Layout.of(HISTOGRAM, parse_families(HISTOGRAM))
    assert (layout.values(text.split("\n")) is not None) == is_known


@pytest.mark.parametrize("more", ["3 1700000000000", '3 # {trace_id="x"} 0.3', "3\t17"])
def test_a_text_with_more_than_a_value_in_a_line_is_always_parsed(more):
    text = HISTOGRAM.replace('le="0.1"} 3.0', f'le="0.1"}} {more}')
    assert Layout.of(text, parse_families(text)).lines is None
    assert read(text, text).histograms["counts"].to_list() == [[3.0, 3.0]] * 2


def test_a_creation_time_from_an_older_scrape_counts_even_if_it_arrives_later():
    name = "vllm:generation_tokens"
    text = f"# TYPE {name}_total counter\n{name}_total 5\n# TYPE {name}_created gauge\n"
    reader = ScrapeReader()
    for t, created in ((1_000.0, 1.0), (1_010.0, 1_004.0), (1_004.0, 1_004.0)):
        reader.add(Scrape(t, "v", 200, f"{text}{name}_created {created}\n" if t > 1e3 else ""))
    series = reader.rows().series.filter(pl.col("kind") == "counter")
    assert series["starts_at_zero"].to_list() == [True]


def test_an_integer_beyond_all_floats_is_infinite_and_no_observation():
    text = f"# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running {'9' * 400}\n"
    rows = read(text, text)
    assert rows.samples.height == 2  # `up`, twice
    assert math.inf in values_of(parse_families(text))
