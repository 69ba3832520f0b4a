from answer_by_hand import ANSWER, answer, estimate, extrapolated, unknown
from msgspec.structs import replace
from snapshot import assert_same

from vllm_capacity.estimate import Estimate
from vllm_capacity.figures.gauges import Gauge
from vllm_capacity.figures.latency import Quantile
from vllm_capacity.figures.losses import Lost
from vllm_capacity.render.numbers import seconds
from vllm_capacity.render.prose import captions

WHY = "the reason it is not known"
NOTHING = Gauge(None, None)
AT_LEAST = Estimate.at_least(50.0, "the best minute", reason=WHY)
CASES = {
    captions.regime_found: {
        "a bottleneck": {},
        "none": {"saturation__bottleneck": None},
    },
    captions.capacity_found: {
        "a plateau": {},
        "none": {"saturation__capacity_output_tokens_per_second": unknown(WHY)},
        "a lower bound": {"saturation__capacity_output_tokens_per_second": AT_LEAST},
        "extrapolated": {
            "saturation__capacity_kind": "extrapolated",
            "saturation__capacity_output_tokens_per_second": extrapolated(300.0, 200.0, 400.0),
        },
    },
    captions.queue_found: {
        "a queue": {},
        "no queue": {"waiting": Gauge(0.0, 0.0)},
        "no gauge": {"running": NOTHING},
        "no gauge of waiting requests": {"waiting": NOTHING},
        "a mean without a maximum": {"running": Gauge(12.0, None)},
    },
    captions.kv_found: {
        "preemptions": {},
        "none": {"preemptions": 0},
        "no gauge": {"kv_cache_ratio": NOTHING},
    },
    captions.throughput_found: {
        "known": {},
        "not counted": {"throughput__output_tokens_per_second": None},
    },
    captions.requests_found: {
        "known": {},
        "no rate": {"throughput__requests_per_second": None},
        "not counted": {"requests__finished": None},
    },
    captions.tokens_found: {
        "with a prefix cache": {},
        "without": {"prefix_cache_hit_ratio": None},
        "not counted": {"tokens__prompt": None},
    },
    captions.outcomes_found: {
        "counted": {},
        "requests lost in restarts": {"requests__lost": Lost(0, 12)},
        "requests lost without a bound": {"requests__lost": Lost(0, None, WHY)},
        "not counted": {"requests__finished": None},
    },
    captions.slo_throughput_found: {
        "known": {},
        "not known": {"slo__throughput_output_tokens_per_second": unknown(WHY)},
    },
    captions.preemptions_found: {
        "some": {},
        "none": {"preemptions": 0},
        "no gauge of the cache": {"preemptions": 0, "kv_cache_ratio": NOTHING},
        "not counted": {"preemptions": None},
    },
    captions.cost_per_request_found: {
        "known": {},
        "an upper bound": {"cost__usd_per_request": Estimate.at_most(0.25, "the bill", reason=WHY)},
        "not known": {"cost__usd_per_request": unknown(WHY)},
    },
    captions.cost_found: {
        "known": {},
        "utilization unknown": {"cost__utilization": unknown(WHY)},
        "utilization an upper bound": {
            "cost__utilization": Estimate.at_most(0.9, "the best minute", reason=WHY),
            "cost__usd_per_million_output_tokens_at_knee": unknown(WHY),
        },
        "not known": {"cost__usd_per_million_output_tokens": unknown(WHY)},
    },
}
P95 = {
    "inside a bucket": Quantile(17.6, 10.0, 20.0),
    "above the last edge": Quantile(None, 2560.0, None),
    "nothing observed": Quantile(),
}


def latencies():
    """The caption of each quantile, with an attainment and without one."""
    for name, quantile in P95.items():
        for attainment in (estimate(0.9, 0.85, 0.95), unknown("no target given"), None):
            quantiles = replace(ANSWER.latency.ttft, p95=quantile)
            yield f"{name}: {captions.latency_found(quantiles, attainment, write=seconds)}"


def test_captions_match_their_snapshots():
    shown = []
    for caption, cases in CASES.items():
        lines = [f"{name}: {caption(answer(**changes))}" for name, changes in cases.items()]
        shown += [f"# {caption.__name__}", *lines, ""]
    text = "\n".join([*shown, "# latency_found", *latencies()])
    assert_same("captions", text.replace("\xa0", " "))
