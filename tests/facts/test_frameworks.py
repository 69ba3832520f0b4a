"""Other frameworks' families against expositions of our own and, where present, published ones."""

from collections import Counter
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from vllm_capacity.facts.metrics import equivalents, framework, match, metrics

EQUIVALENTS = equivalents()
PUBLISHED = Path(__file__).parents[2] / ".." / "shared" / "data" / "other-frameworks"
SCRAPES = {
    "sglang": ("sglang-dynamo-worker-scrape.txt", "sglang-docs.txt"),
    "tgi": ("tgi-scrape-third-party-excerpt.txt",),
    "tensorrt-llm": ("trtllm-dynamo-worker-scrape.txt",),
    "nim": ("nim-scrape-third-party.txt",),
    "dynamo": ("dynamo-frontend-scrape.txt",),
}


def histogram(name: str, count: int) -> str:
    return (
        f'# TYPE {name} histogram\n{name}_bucket{{le="1"}} {count}\n'
        f'{name}_bucket{{le="+Inf"}} {count}\n{name}_sum 0.5\n{name}_count {count}\n'
    )


def plain(name: str, kind: str, value: float) -> str:
    return f"# TYPE {name} {kind}\n{name} {value}\n"


OWN = {
    "sglang": plain("sglang:num_running_reqs", "gauge", 3)
    + plain("sglang:token_usage", "gauge", 0.25)
    + plain("sglang:gen_throughput", "gauge", 99)
    + plain("sglang:generation_tokens_total", "counter", 7)
    + histogram("sglang:time_per_output_token_seconds", 4),
    "tgi": plain("tgi_queue_size", "gauge", 2)
    + plain("tgi_request_success", "counter", 5)
    + plain("tgi_batch_concat", "counter", 1)
    + histogram("tgi_request_duration", 5),
    "tensorrt-llm": plain("trtllm_request_success_total", "counter", 2)
    + histogram("trtllm_time_per_output_token_seconds", 2),
    "nim": plain("num_requests_running", "gauge", 1)
    + plain("num_request_max", "gauge", 64)
    + plain("request_finish_total", "counter", 5)
    + plain("request_success_total", "counter", 5),
    "dynamo": plain("dynamo_frontend_output_tokens_total", "counter", 9)
    + plain("dynamo_frontend_queued_requests", "gauge", 1)
    + plain("dynamo_component_requests_total", "counter", 3)
    + histogram("dynamo_frontend_request_duration_seconds", 1),
}
UNDERSTOOD = {
    "sglang": {
        "sglang:num_running_reqs": "vllm:num_requests_running",
        "sglang:token_usage": "vllm:kv_cache_usage_perc",
        "sglang:generation_tokens": "vllm:generation_tokens_total",
        "sglang:time_per_output_token_seconds": "vllm:inter_token_latency_seconds",
    },
    "tgi": {
        "tgi_queue_size": "vllm:num_requests_waiting",
        "tgi_request_success": "vllm:request_success_total",
        "tgi_request_duration": "vllm:e2e_request_latency_seconds",
    },
    "tensorrt-llm": {
        "trtllm_request_success": "vllm:request_success_total",
        # One mean per request (TPOT), not the gaps between tokens (ITL).
        "trtllm_time_per_output_token_seconds": "vllm:request_time_per_output_token_seconds",
    },
    "nim": {
        "num_requests_running": "vllm:num_requests_running",
        "request_finish": "vllm:request_success_total",
    },
    "dynamo": {
        "dynamo_frontend_output_tokens": "vllm:generation_tokens_total",
        "dynamo_frontend_request_duration_seconds": "vllm:e2e_request_latency_seconds",
    },
}


@pytest.mark.parametrize("server", OWN)
def test_an_exposition_is_read_where_concepts_agree(server):
    families = list(text_string_to_metric_families(OWN[server]))
    found = {family.name: match(family.name) for family in families}
    understood = {name: hit.metric.name for name, hit in found.items() if hit}
    assert understood == UNDERSTOOD[server]


@pytest.mark.parametrize("server", OWN)
def test_kinds_agree_with_the_concept(server):
    for family in text_string_to_metric_families(OWN[server]):
        hit = match(family.name)
        assert hit is None or hit.metric.kind == family.type


def test_every_entry_names_a_family_of_the_catalogue():
    assert {entry.metric for entry in EQUIVALENTS} <= {entry.name for entry in metrics()}


def test_no_framework_has_two_names_of_equal_priority():
    result = Counter((entry.framework, entry.metric, entry.alias_priority) for entry in EQUIVALENTS)
    assert max(result.values()) == 1


def test_an_exposed_name_has_one_meaning():
    assert max(Counter(entry.exposed for entry in EQUIVALENTS).values()) == 1


def test_an_older_name_of_another_framework_yields_to_the_newer():
    older = match("sglang:time_per_output_token_seconds")
    newer = match("sglang_inter_token_latency_seconds")
    assert (older.metric, older.alias_priority, newer.alias_priority) == (newer.metric, 1, 0)


def published(file: str) -> str:
    path = PUBLISHED / file
    if not path.exists():
        pytest.skip(f"no {path.parent.name}/{file} beside the repository: not ours to commit")
    return path.read_text()


@pytest.mark.shared
@pytest.mark.parametrize("entry", EQUIVALENTS, ids=lambda entry: entry.exposed)
def test_a_published_scrape_confirms_the_mapping(entry):
    kinds = {}
    for file in SCRAPES[entry.framework]:
        for family in text_string_to_metric_families(published(file)):
            hit = match(family.name)
            if hit and framework(family.name) == entry.framework:
                kinds.setdefault((hit.metric.name, hit.alias_priority), set()).add(family.type)
    assert kinds.get((entry.metric, entry.alias_priority)) == {
        str(match(entry.exposed).metric.kind)
    }
