"""The catalogue against itself, against recorded scrapes, and against the releases' own names."""

import csv
import gzip
import re
from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_capacity.facts import metrics as catalog
from vllm_capacity.facts.metrics import (
    CORE,
    FEATURES,
    Across,
    Kind,
    canonical_name,
    feature,
    framework,
    keeps,
    match,
)

TESTS = Path(__file__).parents[1]
PACKAGE = Path(catalog.__file__).parents[1]
METRICS = catalog.metrics()
RECORDED = {  # release and engine of each recorded scrape
    "metrics_vllm_0.32.0.txt.gz": ("0.32.0", "V1"),
    "metrics_vllm_0.9.2_v1.txt.gz": ("0.9.2", "V1"),
    "metrics_vllm_0.9.2_v0.txt.gz": ("0.9.2", "V0"),
}
# In the source of these releases, but not exported by their engine V0, which used other names.
NOT_IN_V0 = {
    "vllm:kv_cache_usage_perc",
    "vllm:prefix_cache_queries_total",
    "vllm:prefix_cache_hits_total",
    "vllm:gpu_prefix_cache_queries_total",
    "vllm:gpu_prefix_cache_hits_total",
    # V0's recording lacks the families of the HTTP instrumentator and of the process.
    "http_requests_total",
    "http_request_duration_seconds",
    "http_request_duration_highr_seconds",
    "process_start_time_seconds",
}


def exposition(name: str) -> str:
    return gzip.decompress((TESTS / "data" / name).read_bytes()).decode()


def types(text: str) -> dict[str, str]:
    """Every family's `# TYPE` in an exposition."""
    lines = [line.split() for line in text.splitlines() if line.startswith("# TYPE ")]
    return {words[2]: words[3] for words in lines if not words[2].endswith("_created")}


def release(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split("."))


def is_named_by(first: str, last: str, version: str) -> bool:
    return release(first) <= release(version) and (not last or release(version) <= release(last))


with (Path(__file__).parent / "vllm_names.csv").open() as table:
    NAMES = list(csv.DictReader(table))


@pytest.mark.parametrize("row", NAMES, ids=lambda row: row["name"])
def test_every_name_of_the_sampled_releases_is_known_with_its_kind(row):
    kind = match(row["name"]).metric.kind
    assert kind == row["kind"] or (kind is Kind.INFO and row["kind"] == "gauge")


@pytest.mark.parametrize("row", NAMES, ids=lambda row: row["name"])
def test_a_canonical_name_carries_the_releases_it_was_sampled_in(row):
    found = match(row["name"])
    if found.alias_priority == 0:
        assert (found.metric.since, found.metric.until) == (
            row["first_release"],
            row["last_release"],
        )
    else:
        assert row["last_release"], "an alias is a name that vLLM has dropped"


@pytest.mark.parametrize("file", RECORDED)
def test_every_family_of_a_recorded_scrape_is_in_the_catalogue_with_its_type(file):
    exposed = {
        name: kind for name, kind in types(exposition(file)).items() if name.startswith("vllm:")
    }
    ours = {name: match(name).metric.kind for name in exposed}
    assert {n: "gauge" if k is Kind.INFO else str(k) for n, k in ours.items()} == exposed


@pytest.mark.parametrize(("file", "made_by"), RECORDED.items(), ids=list(RECORDED))
def test_families_a_release_names_are_in_its_recorded_scrape(file, made_by):
    version, engine = made_by
    exposed = {canonical_name(name) for name in types(exposition(file))}
    named = {
        entry.name
        for entry in METRICS
        if entry.since and not entry.needs and is_named_by(entry.since, entry.until, version)
    }
    if engine == "V0":
        named -= NOT_IN_V0
    assert named - exposed == set()


def test_no_two_families_share_a_spelling():
    spelt = Counter(name for entry in METRICS for name in {entry.name, *entry.aliases})
    without_total = Counter(
        name.removesuffix("_total") for name in spelt if match(name).metric.kind is Kind.COUNTER
    )
    others = {name for name in spelt if match(name).metric.kind is not Kind.COUNTER}
    assert max(spelt.values()) == 1
    assert max(without_total.values()) == 1
    assert others & set(without_total) == set()


@pytest.mark.parametrize("entry", METRICS, ids=lambda entry: entry.name)
def test_an_entry_is_consistent_with_itself(entry):
    ends_as_counter = entry.name.endswith("_total")
    is_counter = entry.kind is Kind.COUNTER
    assert ends_as_counter == is_counter or entry.name == "vllm:iteration_tokens_total"
    if entry.unit == "ratio":
        assert entry.kind is Kind.GAUGE
        assert entry.across is Across.MEAN_MAX
    if entry.name.endswith("_seconds"):
        assert entry.unit in {"seconds", "unix seconds"}
    if entry.kind is Kind.INFO:
        assert entry.unit == "info"
    if entry.kind is Kind.HISTOGRAM:
        assert entry.across is Across.SUM
    assert entry.asks.endswith("?")


def test_core_families_are_in_every_recorded_scrape_under_load():
    for file in RECORDED:
        exposed = {canonical_name(name) for name in types(exposition(file))}
        assert set(CORE) <= exposed, file


@pytest.mark.parametrize(
    ("exposed", "name", "alias_priority"),
    [
        pytest.param("vllm:prompt_tokens_total", "vllm:prompt_tokens_total", 0, id="as exposed"),
        pytest.param("vllm:prompt_tokens", "vllm:prompt_tokens_total", 0, id="parser cut _total"),
        pytest.param("vllm_prompt_tokens_total", "vllm:prompt_tokens_total", 0, id="proxied"),
        pytest.param("ray_vllm_prompt_tokens", "vllm:prompt_tokens_total", 0, id="through Ray"),
        pytest.param("ray_vllm:prompt_tokens", "vllm:prompt_tokens_total", 0, id="Ray with colon"),
        pytest.param(
            "vllm:iteration_tokens_total",
            "vllm:iteration_tokens_total",
            0,
            id="a histogram keeps its _total",
        ),
        pytest.param(
            "vllm:gpu_cache_usage_perc", "vllm:kv_cache_usage_perc", 1, id="the old KV name"
        ),
        pytest.param(
            "vllm_time_per_output_token_seconds",
            "vllm:inter_token_latency_seconds",
            1,
            id="the old inter-token name, proxied",
        ),
        pytest.param(
            "vllm:time_in_queue_requests",
            "vllm:request_queue_time_seconds",
            1,
            id="the old queue name has no unit",
        ),
        pytest.param(
            "vllm:gpu_prefix_cache_hits_total",
            "vllm:gpu_prefix_cache_hits_total",
            0,
            id="blocks are not tokens, so the old prefix-cache name stays apart",
        ),
        pytest.param("vllm:cache_config", "vllm:cache_config_info", 0, id="parser cut _info"),
        pytest.param("up", "up", 0, id="the scraper's own"),
        pytest.param("http_requests", "http_requests_total", 0, id="HTTP, _total cut"),
    ],
)
def test_match(exposed, name, alias_priority):
    found = match(exposed)
    assert (found.metric.name, found.alias_priority) == (name, alias_priority)


@pytest.mark.parametrize(
    "exposed",
    [
        pytest.param("vllm:iteration_tokens", id="no histogram under a cut name"),
        pytest.param("vllm:made_up_total", id="unknown vLLM family"),
        pytest.param("python_gc_objects_collected_total", id="python noise"),
        pytest.param("vllm:up", id="a plain name does not get the prefix"),
        pytest.param("node_load1", id="another exporter"),
        pytest.param("", id="nothing"),
    ],
)
def test_match_of_a_stranger_is_none(exposed):
    assert match(exposed) is None


@pytest.mark.parametrize(
    ("exposed", "kept", "name"),
    [
        pytest.param("vllm:made_up_total", True, "vllm:made_up_total", id="unknown vLLM family"),
        pytest.param("ray_vllm_made_up", True, "vllm:made_up", id="unknown family through Ray"),
        pytest.param(
            "vllm:prompt_tokens_created", False, "vllm:prompt_tokens_created", id="creation time"
        ),
        pytest.param("vllm_made_up_created", False, "vllm:made_up_created", id="unknown creation"),
        pytest.param(
            "process_start_time_seconds", True, "process_start_time_seconds", id="process start"
        ),
        pytest.param(
            "process_cpu_seconds_total", False, "process_cpu_seconds_total", id="process noise"
        ),
        pytest.param("python_info", False, "python_info", id="python noise"),
        pytest.param("sglang:num_running_reqs", True, "vllm:num_requests_running", id="SGLang"),
        pytest.param(
            "sglang:gen_throughput", False, "sglang:gen_throughput", id="SGLang, unmapped"
        ),
        pytest.param("scrape_duration_seconds", True, "scrape_duration_seconds", id="scraper"),
    ],
)
def test_border(exposed, kept, name):
    assert (keeps(exposed), canonical_name(exposed)) == (kept, name)


@pytest.mark.parametrize("file", RECORDED)
def test_the_parsers_own_family_names_are_recognised(file):
    families = list(text_string_to_metric_families(exposition(file)))
    vllm = [family for family in families if family.name.startswith("vllm:")]
    known = [f for f in vllm if not f.name.endswith("_created")]
    assert len(known) >= 20
    assert all(match(family.name) for family in known)


NAMED = [name for name, value in vars(catalog).items() if name.isupper() and isinstance(value, str)]


@pytest.mark.parametrize("constant", NAMED)
def test_a_name_that_figures_use_is_a_row(constant):
    name = getattr(catalog, constant)
    assert name in {entry.name for entry in METRICS}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.sql")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_families_named_in_a_query_are_known(path):
    named = re.findall(r"'(vllm[:_]\w+)'", path.read_text())
    assert [name for name in named if match(name) is None] == []


def test_figures_take_their_names_from_the_catalogue():
    written = [path for path in (PACKAGE / "figures").glob("*.py") if "vllm:" in path.read_text()]
    assert written == []


@pytest.mark.parametrize("entry", METRICS, ids=lambda entry: entry.name)
def test_the_feature_of_a_family_is_the_one_its_name_says(entry):
    assert entry.feature in {"", *(item.name for item in FEATURES)}
    by_name = feature(entry.name)
    if by_name:
        assert entry.feature == by_name.name


@pytest.mark.parametrize(
    ("exposed", "labels", "name"),
    [
        pytest.param("vllm:spec_decode_num_drafts_total", {}, "speculative decoding", id="known"),
        pytest.param("vllm_nixl_xfer_time_seconds", {}, "prefill/decode disaggregation", id="NIXL"),
        pytest.param("vllm:simple_kv_offload_x_total", {}, "KV offload", id="not in the catalogue"),
        pytest.param(
            "vllm:mooncake_store_operation_x", {}, "KV offload", id="a store, no transfer"
        ),
        pytest.param("vllm:lora_requests_info", {"max_lora": "4"}, "LoRA", id="LoRA in use"),
        pytest.param("vllm:lora_requests_info", {"max_lora": "0"}, None, id="LoRA off in V0"),
        pytest.param("vllm:external_prefix_cache_hits_total", {}, None, id="always registered"),
        pytest.param("vllm:num_requests_running", {}, None, id="no feature"),
    ],
)
def test_feature(exposed, labels, name):
    found = feature(exposed, labels)
    assert (found and found.name) == name


@pytest.mark.parametrize("file", RECORDED)
def test_no_optional_feature_is_seen_in_plain_servers(file):
    families = text_string_to_metric_families(exposition(file))
    seen = {feature(family.name, sample.labels) for family in families for sample in family.samples}
    assert seen == {None}


@pytest.mark.parametrize(
    ("exposed", "server"),
    [
        pytest.param("ray_vllm_made_up", "vllm", id="any vLLM family"),
        pytest.param("dynamo_frontend_requests", "dynamo", id="Dynamo, _total cut"),
        pytest.param("trtllm_request_success_total", "tensorrt-llm", id="TensorRT-LLM"),
        pytest.param("node_load1", None, id="a stranger"),
    ],
)
def test_framework(exposed, server):
    assert framework(exposed) == server
