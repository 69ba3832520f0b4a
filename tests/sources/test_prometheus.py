"""Prometheus' API: what its refusals become, and which families its metric names stand for.

That the real one's samples are those that were served is in integration/test_sources_contract.py.
"""

import json
import re
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import parse_qs

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from vllm_capacity.errors import SourceError
from vllm_capacity.figures.makes import target_labels
from vllm_capacity.live.pull import pull_prometheus
from vllm_capacity.selector import selector
from vllm_capacity.sources import prometheus
from vllm_capacity.sources.answers import AnswerCache
from vllm_capacity.sources.prometheus import Prometheus
from vllm_capacity.sources.prometheus_pull import prometheus_slices, read_prometheus, read_slice
from vllm_capacity.sources.prometheus_rows import families
from vllm_capacity.sources.slices import gathered, one_by_one
from vllm_capacity.telemetry.store import write_window
from vllm_capacity.telemetry.window import open_window
from vllm_capacity.timerange import TimeRange

START = datetime(2026, 11, 24, 8, tzinfo=UTC)
PART = TimeRange(START, START + timedelta(minutes=10))


def answering(handler):
    client = httpx.Client(base_url="http://prometheus", transport=httpx.MockTransport(handler))
    return client


@pytest.mark.parametrize(
    ("response", "says"),
    [
        pytest.param(httpx.Response(401), "PROMETHEUS_USER", id="credentials are wanted"),
        pytest.param(
            httpx.Response(422, json={"error": "query processing would load too many samples"}),
            "too many samples. Ask for a shorter range",
            id="too much at once",
        ),
        pytest.param(httpx.Response(200, text="<html>"), "not answer as Prometheus", id="a page"),
        pytest.param(httpx.Response(503, text="starting"), "not ready", id="still starting"),
    ],
)
def test_a_refusal_is_one_clear_line(response, says):
    with answering(lambda request: response) as client, pytest.raises(SourceError, match=says):
        read_prometheus(Prometheus(client, pause=lambda seconds: None), PART)


@pytest.mark.parametrize(
    ("names", "scalars", "histograms"),
    [
        pytest.param(
            ["vllm:x_bucket", "vllm:x_count", "vllm:x_sum"], (), ("vllm:x",), id="a histogram"
        ),
        pytest.param(
            ["vllm:iteration_tokens_total_bucket", "vllm:iteration_tokens_total_sum"],
            (),
            ("vllm:iteration_tokens_total",),
            id="a histogram that ends in _total",
        ),
        pytest.param(["vllm:y_count"], ("vllm:y_count",), (), id="a name that ends like a part"),
        pytest.param(["go_goroutines", "vllm:z_created"], (), (), id="what no figure reads"),
    ],
)
def test_families_behind_names(names, scalars, histograms):
    found = families(names, {})
    assert (found.scalars, found.histograms) == (scalars, histograms)


def test_an_hour_boundary_sample_that_comes_twice_counts_once():
    series = {"__name__": "vllm:num_requests_running", "instance": "a", "job": "vllm"}
    values = [[(START + timedelta(seconds=s)).timestamp(), str(s)] for s in (0, 2)]

    def handler(request):
        if request.url.path.endswith("values"):
            return httpx.Response(200, json={"status": "success", "data": [series["__name__"]]})
        if request.url.path.endswith("metadata"):
            return httpx.Response(404)
        result = [{"metric": series, "values": values}]
        return httpx.Response(
            200, json={"status": "success", "data": {"resultType": "matrix", "result": result}}
        )

    with answering(handler) as client:
        rows = read_prometheus(Prometheus(client, pause=lambda seconds: None), PART)
    assert rows.samples.get_column("value").to_list() == [0.0, 2.0]


def answering_with(*series):
    """A server that has these series, each with two samples."""
    names = sorted({one["__name__"] for one in series})
    values = [[(START + timedelta(seconds=s)).timestamp(), "1"] for s in (0, 15)]

    def handler(request):
        if request.url.path.endswith("values"):
            return httpx.Response(200, json={"status": "success", "data": names})
        if request.url.path.endswith("metadata"):
            return httpx.Response(404)
        question = parse_qs(request.content.decode())["query"][0]
        result = [{"metric": o, "values": values} for o in series if o["__name__"] in question]
        data = {"resultType": "matrix", "result": result}
        return httpx.Response(200, json={"status": "success", "data": data})

    return answering(handler)


def test_the_labels_of_a_target_are_kept_apart_from_those_of_its_series(tmp_path):
    target = {"instance": "a:8000", "job": "vllm", "team": "search", "namespace": "prod"}
    own = {"model_name": "m", "engine": "0"}
    series = (
        {"__name__": "up", **target},
        {"__name__": "vllm:generation_tokens_total", **target, **own},
    )
    with answering_with(*series) as client:
        rows = read_prometheus(Prometheus(client, pause=lambda seconds: None), PART)
    window = open_window(write_window(tmp_path / "w", rows, {}))
    assert target_labels(window) == {"a:8000": {"team": "search", "namespace": "prod"}}
    labels = dict(window.sql("select metric, labels from series").iter_rows())
    assert labels["vllm:generation_tokens_total"] == labels["up"] == "{}"


def serving(asked, *, spans=timedelta(hours=5), every=timedelta(minutes=20)):
    """A server with one counter that counts minutes; `asked` gets the queries for samples."""
    labels = {"__name__": "vllm:generation_tokens_total", "instance": "a", "job": "vllm"}
    times = [START + every * n for n in range(-3, spans // every)]

    def handler(request):
        if request.url.path.endswith("values"):
            return httpx.Response(200, json={"status": "success", "data": [labels["__name__"]]})
        if request.url.path.endswith("metadata"):
            return httpx.Response(404)
        question = parse_qs(request.content.decode())
        asked.append(question["query"][0])
        end = datetime.fromtimestamp(float(question["time"][0]), UTC)
        length = timedelta(milliseconds=int(re.search(r"\[(\d+)ms\]$", asked[-1])[1]))
        values = [
            [t.timestamp(), str((t - START) // timedelta(minutes=1) + 100)]
            for t in times
            if end - length <= t <= end
        ]
        result = [{"metric": labels, "values": values}] if values else []
        data = {"resultType": "matrix", "result": result}
        return httpx.Response(200, json={"status": "success", "data": data})

    return answering(handler)


SPELLED = (
    "0.1",
    "1e+06",
    "-2.5e-07",
    "4.9e-324",
    "1.7976931348623157e+308",
    "NaN",
    "123456789.123",
)


@pytest.mark.parametrize("more", [(), ("+Inf", "-Inf")], ids=["numbers", "and infinity"])
def test_a_number_is_read_as_it_is_spelled(more):
    spelled = (*SPELLED, *more)
    values = [[START.timestamp() + n / 8, text] for n, text in enumerate(spelled)]
    result = [{"metric": {"__name__": "up", "job": "ü"}, "values": values}]
    body = {"status": "success", "data": {"resultType": "matrix", "result": result}}
    with answering(lambda request: httpx.Response(200, json=body)) as client:
        ((metric, ms, value, warning),) = Prometheus(client).answer(["up"], PART).rows()
    assert [repr(each) for each in value] == [repr(float(text)) for text in spelled]
    assert ms == [round(1000 * START.timestamp()) + 125 * n for n in range(len(spelled))]
    assert (json.loads(metric), warning) == ({"__name__": "up", "job": "ü"}, None)


@pytest.mark.parametrize("text", ["", "1,5", "0x10", "one"])
def test_a_value_that_is_no_number_is_refused(text):
    result = [{"metric": {"__name__": "up"}, "values": [[START.timestamp(), text]]}]
    body = {"status": "success", "data": {"resultType": "matrix", "result": result}}
    with (
        answering(lambda request: httpx.Response(200, json=body)) as client,
        pytest.raises(SourceError, match="not a number"),
    ):
        Prometheus(client).answer(["up"], PART)


NUMBERS = st.sampled_from([*SPELLED, "7", "-0.5", "+Inf", "Infinity", "one", ""])
SECONDS = st.sampled_from(["1795507200", "1795507200.125", "1e9", "-1", "1e12", "null"])
SAMPLES = st.builds('[{},"{}"]'.format, SECONDS, NUMBERS)
NO_SAMPLES = st.sampled_from(['[1,"2","3"]', "[4]", '["5","6"]', "[7,8]", '[9,["1"]]', "[]"])


@given(
    st.lists(st.lists(st.one_of(SAMPLES, NO_SAMPLES), max_size=2), max_size=2),
    st.tuples(st.floats(0, 1), st.integers(0, 2), st.sampled_from('[],"1')) | st.none(),
)
def test_numbers_read_as_one_list_are_those_read_one_by_one(series, damage):
    """Both ways accept and refuse the same answers, also damaged ones."""
    values = ";".join(f"[{','.join(samples)}]" for samples in series)
    if damage is not None:
        share, deleted, inserted = damage
        at = round(share * len(values))
        values = values[:at] + inserted + values[at + deleted :]
    result = ",".join(f'{{"metric":{{}},"values":{each}}}' for each in values.split(";"))
    body = f'{{"status":"success","data":{{"resultType":"matrix","result":[{result}]}}}}'.encode()

    def outcome():
        try:
            found = prometheus._read_matrix(body, "there")
        except SourceError as error:
            return str(error)
        return found.lengths, repr(found.seconds.tolist()), repr(found.values.tolist())

    together = outcome()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(prometheus, "_flat_numbers", lambda texts, lengths: None)
        one_by_one = outcome()
    assert together == one_by_one


def test_every_hour_of_a_range_is_there_and_the_last_state_before_it():
    time_range = TimeRange(START, START + timedelta(hours=4))
    with serving([]) as client:
        rows = read_prometheus(Prometheus(client), time_range)
    assert rows.samples.sort("ts")["value"].to_list() == [80.0 + 20 * n for n in range(13)]


def test_only_the_series_that_match_are_asked_for(tmp_path):
    asked, names = [], []
    with serving(asked) as client:
        client.event_hooks["request"].append(lambda request: names.append(request.url.params))
        server = Prometheus(client, only=selector('namespace="team-a"'))
        window = open_window(pull_prometheus(server, PART, tmp_path / "w"))
    selectors = {question.partition("[")[0] for question in asked}
    assert selectors == {'{__name__=~"vllm:generation_tokens_total",namespace="team-a"}'}
    assert names[0]["match[]"] == '{__name__=~".+",namespace="team-a"}'
    assert window.provenance["match"] == '{namespace="team-a"}'


def test_a_pull_that_goes_on_asks_only_for_what_could_still_grow(tmp_path):
    time_range, first, again = TimeRange(START, START + timedelta(hours=4)), [], []
    now = time_range.end + timedelta(minutes=1)

    def pulled(asked):
        with serving(asked) as client:
            server = Prometheus(client)
            return gathered(
                prometheus_slices(server, time_range),
                one_by_one(partial(read_slice, server)),
                cache=AnswerCache(tmp_path / "answers", now),
            )

    before = [part() for part in pulled(first)]
    assert [part() for part in pulled(again)] == before
    assert (len(first), len(again)) == (5, 1)


def test_a_pulled_window_does_not_depend_on_how_its_hours_were_buffered(tmp_path):
    time_range = TimeRange(START, START + timedelta(hours=4))
    with serving([]) as client:
        server = Prometheus(client)
        write_window(tmp_path / "whole", read_prometheus(server, time_range), {})
        pull_prometheus(server, time_range, tmp_path / "hours")
    whole, hours = (open_window(tmp_path / name) for name in ("whole", "hours"))
    query = "select * from samples order by series_id, ts"
    assert_frame_equal(whole.sql(query), hours.sql(query))
    assert whole.sql("select * from series").equals(hours.sql("select * from series"))
