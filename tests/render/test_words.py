import itertools

import pytest
from answer_by_hand import ANSWER, answer, estimate, regime, unknown

from vllm_capacity.render.numbers import seconds
from vllm_capacity.render.prose import verdict as words

WHY = "the reason it is not known"
IN_TIME = {"slo__ttft_attainment": estimate(0.99), "slo__itl_attainment": estimate(0.97)}
NO_TARGET = {
    "slo__ttft_attainment": unknown("no target given"),
    "slo__itl_attainment": unknown("no target given"),
    "slo__capacity_output_tokens_per_second": unknown("no latency target was given"),
}


def fleet(*stretches):
    """Regimes over time, each as (engine, from minute, to minute, regime)."""
    rows = [
        {**regime(at, to, name, "seen"), "engine": engine} for engine, at, to, name in stretches
    ]
    return {"saturation__regimes": rows}


def said(**changes):
    return " ".join(words.verdict(answer(**changes))).replace("\xa0", " ")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        pytest.param(
            {},
            "1,000 requests cost $1.00 ($0.00100 each). That is counted, not estimated",
            id="a cost below a cent is told for a thousand",
        ),
        pytest.param(
            {"cost__usd_per_request": estimate(0.25, 0.2, 0.3)},
            "A request cost $0.250, between $0.200 and $0.300.",
            id="a cost with an interval says so",
        ),
        pytest.param(
            {"cost__usd_per_request": estimate(0.25, 0.05, 0.9)},
            "take it as a rough figure",
            id="a wide interval is called rough",
        ),
        pytest.param(
            {"requests__lost": {"low": 0, "high": 84.2}},
            "Up to 84 requests that finished unseen before a server restarted or died would make",
            id="requests lost in restarts are owned up to",
        ),
        pytest.param(
            {"cost__usd_per_request": unknown(WHY)},
            f"What a request cost is not known: {WHY}.",
            id="an unknown cost says why",
        ),
        pytest.param(
            NO_TARGET,
            "The server was used to 67 % (between 64 % and 69 %) of its capacity; $0.667 of the "
            "$2.00 bill paid for idle time.",
            id="idle dollars of the bill",
        ),
        pytest.param(
            {},
            "of its capacity, latency targets left aside; $0.667 of the $2.00 bill",
            id="use of a capacity that the targets do not allow says so",
        ),
        pytest.param(
            {},
            "Within the latency targets it can hold only 220 (between 200 and 240) output "
            "tokens/s, and it made 200 on average. Users waited: in time came 90 % (between 85 % "
            "and 95 %) of first tokens and 80 % of tokens after the first, and a target asks for "
            "95 %. Next:",
            id="missed targets: what can be held within them, and who came late",
        ),
        pytest.param(
            IN_TIME,
            "it can hold only 220 (between 200 and 240) output tokens/s, and it made 200 on "
            "average. Next:",
            id="targets that were met below the capacity are told without late users",
        ),
        pytest.param(
            {"slo__capacity_output_tokens_per_second": unknown(WHY)},
            f"What it can hold within the latency targets is not known: {WHY}. Users waited:",
            id="missed targets without a known capacity say why",
        ),
        pytest.param(
            {"saturation__first_limit": None, "slo__itl_attainment": unknown("no target given")},
            "Next: add a replica, or send it less: it misses its targets before it is full.",
            id="what to do: no room within the targets",
        ),
        pytest.param(
            fleet(("r0/0", 0, 25, "client-bound"), ("r1/0", 10, 25, "kv-bound")),
            "Next: if they serve one model, balance the load first: r1/0 stood at the limit while "
            "r0/0 had room. Only then give the KV cache more room",
            id="what to do: one engine full beside one with room",
        ),
        pytest.param(
            fleet(
                ("r0/0", 0, 25, "idle"),
                ("r2/0", 0, 25, "client-bound"),
                ("r3/0", 0, 25, "client-bound"),
                ("r4/0", 0, 25, "client-bound"),
                ("r1/0", 10, 25, "kv-bound"),
            ),
            "while r0/0, r2/0 and 2 others had room",
            id="what to do: of many engines with room a few are named",
        ),
        pytest.param(
            {"cost__idle_usd": unknown(WHY)},
            "the rest of the bill paid for idle time",
            id="idle without dollars",
        ),
        pytest.param(
            {"cost__utilisation": estimate(0.97, 0.95, 0.99)},
            "next to nothing of the bill was idle",
            id="a full server",
        ),
        pytest.param(
            {"cost__utilisation": estimate(0.0)},
            "Nothing was generated: the whole bill of $2.00 was idle.",
            id="an idle window",
        ),
        pytest.param(
            {"cost__utilisation": unknown(WHY)},
            f"How much of the bill was idle is not known, for its capacity is not: {WHY}.",
            id="unknown utilisation says why",
        ),
        pytest.param(
            {},
            "What limits it first is the memory of its KV cache: at its busiest, the KV cache was "
            "full while requests waited or were preempted. It can do 300 (between 290 and 310) "
            "output tokens/s at 27.0 running requests; over the whole window it ran 33 % below",
            id="the limit and how near it is",
        ),
        pytest.param(
            {"saturation__first_limit": "scheduler-bound"},
            "the number of requests it lets run at once (max_num_seqs)",
            id="bound by the scheduler",
        ),
        pytest.param(
            {"saturation__first_limit": "prefill-bound"},
            "What limits it first is the reading of prompts (prefill)",
            id="bound by prefill",
        ),
        pytest.param(
            {"saturation__headroom_ratio": estimate(0.02)},
            "the window as a whole ran there",
            id="no headroom left",
        ),
        pytest.param(
            {"saturation__first_limit": None, "saturation__regime": "client-bound"},
            "Nothing in the server limited it: it waited for clients. It can do 300",
            id="waiting for clients",
        ),
        pytest.param(
            {"saturation__first_limit": None, "saturation__regime": "idle"},
            "Nothing limited it: it was idle.",
            id="idle throughout",
        ),
        pytest.param(
            {"saturation__first_limit": None, "saturation__regime": "unknown"},
            "What limits it is not known.",
            id="an unknown limit",
        ),
        pytest.param(
            {
                "saturation__capacity_kind": "extrapolated",
                "saturation__capacity_output_tokens_per_second": estimate(300.0, 200.0, 400.0),
            },
            "It would probably do 300",
            id="an extrapolated capacity is not called seen",
        ),
        pytest.param({}, "Next: give the KV cache more room", id="what to do: KV cache"),
        pytest.param(
            {"saturation__first_limit": "scheduler-bound"},
            "Next: raise max_num_seqs",
            id="what to do: scheduler",
        ),
        pytest.param(
            {"saturation__first_limit": "prefill-bound"},
            "Next: raise max_num_batched_tokens",
            id="what to do: prefill",
        ),
        pytest.param(
            {"saturation__first_limit": None, **IN_TIME},
            "Next: give it more requests, or run fewer servers",
            id="what to do: room left",
        ),
        pytest.param(
            {
                "saturation__first_limit": None,
                "saturation__capacity_output_tokens_per_second": unknown(WHY),
            },
            "Next: load it until requests wait",
            id="what to do: capacity unknown",
        ),
        pytest.param(
            {"saturation__first_limit": None, "cost__allocation_usd": unknown(WHY)},
            "Next: give a price",
            id="what to do: no price",
        ),
        pytest.param(
            {"saturation__first_limit": None, "saturation__regime": "idle"},
            "Next: stop it when nobody asks",
            id="what to do: idle",
        ),
        pytest.param(
            {"quality": [{"check": "coverage", "severity": "error", "count": 9, "effect": "e"}]},
            "Next: mend the telemetry before deciding anything; not to be trusted: coverage.",
            id="what to do: poor telemetry comes first",
        ),
    ],
)
def test_verdict_says(changes, sentence):
    assert sentence in said(**changes)


@pytest.mark.parametrize(
    ("changes", "unsaid"),
    [
        pytest.param(NO_TARGET, "target", id="no target given, none spoken of"),
        pytest.param(
            {**IN_TIME, "slo__capacity_output_tokens_per_second": estimate(300.0)},
            "target",
            id="targets held up to saturation are no news",
        ),
        pytest.param({}, "balance", id="a lone engine has nobody to share with"),
        pytest.param(
            fleet(("r0/0", 0, 25, "kv-bound"), ("r1/0", 0, 25, "kv-bound")),
            "balance",
            id="engines that are all full",
        ),
        pytest.param(
            fleet(("r0/0", 0, 10, "client-bound"), ("r1/0", 10, 25, "kv-bound")),
            "balance",
            id="an engine gone before the other was full",
        ),
        pytest.param(
            fleet(("r0/0", 0, 25, "unknown"), ("r1/0", 10, 25, "kv-bound")),
            "balance",
            id="an engine of which nobody knows",
        ),
    ],
)
def test_verdict_does_not_say(changes, unsaid):
    assert unsaid not in said(**changes)


def _unknowns():
    """Every choice of up to three estimates of the answer to be unknown."""
    paths = [
        f"{part}__{name}"
        for part in ("cost", "saturation", "slo")
        for name, value in ANSWER[part].items()
        if isinstance(value, dict) and "mid" in value
    ]
    return [combination for n in range(4) for combination in itertools.combinations(paths, n)]


def test_no_sentence_has_a_blank_whatever_is_unknown():
    found = [
        text
        for paths in _unknowns()
        for limit in ("kv-bound", None)
        for text in words.verdict(
            answer(saturation__first_limit=limit, **{path: unknown(WHY) for path in paths})
        )
        if "None" in text or "  " in text or not text.endswith(".") or ".." in text
    ]
    assert found == []


def test_simulated_telemetry_is_said_first():
    assert words.verdict(ANSWER, is_simulated=True)[0] == words.SIMULATED


@pytest.mark.parametrize(
    ("severities", "word"),
    [
        pytest.param([], "good", id="nothing found"),
        pytest.param(["info", "info"], "good", id="facts to know are no doubt"),
        pytest.param(["info", "warning"], "usable", id="a doubt"),
        pytest.param(["warning", "error"], "poor", id="the worst finding decides"),
    ],
)
def test_quality_in_a_word(severities, word):
    quality = [{"check": "gap", "severity": each, "count": 1} for each in severities]
    assert words.quality_word(answer(quality=quality))[0] == word


@pytest.mark.parametrize(
    ("quantile", "text"),
    [
        pytest.param(
            {"value": 17.6, "lower": 10.0, "upper": 20.0},
            "95 % of them within 17.6 s (the histogram only says between 10.0 s and 20.0 s); "
            "90 % (between 85 % and 95 %) met the target",
            id="with its bounds",
        ),
        pytest.param(
            {"value": None, "lower": 2560.0, "upper": None},
            "The slowest 5 % took more than 2,560 s; 90 % (between 85 % and 95 %) met the target",
            id="above the last edge",
        ),
        pytest.param(
            {"value": None, "lower": None, "upper": None},
            "Nothing was observed in this window; 90 % (between 85 % and 95 %) met the target",
            id="nothing observed",
        ),
    ],
)
def test_latency_found(quantile, text):
    made = answer(latency__ttft_seconds__p95=quantile)
    found = words.latency_found(made, "ttft_seconds", write=seconds)
    assert found.replace("\xa0", " ") == text


@pytest.mark.parametrize(
    ("function", "changes", "text"),
    [
        pytest.param(
            words.capacity_found,
            {},
            "Output stops rising at 27.0 running requests, at 300 (between 290 and 310) tokens/s",
            id="a plateau",
        ),
        pytest.param(
            words.capacity_found,
            {"saturation__capacity_output_tokens_per_second": unknown(WHY)},
            f"No plateau was seen: {WHY}",
            id="no plateau",
        ),
        pytest.param(
            words.queue_found, {}, "12.0 ran on average, 40 at most; up to 45 waited", id="a queue"
        ),
        pytest.param(
            words.queue_found,
            {"waiting": {"mean": 0.0, "max": 0}},
            "12.0 ran on average, 40 at most; none ever waited",
            id="no queue",
        ),
        pytest.param(
            words.queue_found,
            {"running": {"mean": None, "max": None}},
            "The server did not say how many requests ran",
            id="no gauge",
        ),
        pytest.param(
            words.kv_found, {}, "45 % full on average, 100 % at most; 561 preemptions", id="KV"
        ),
        pytest.param(
            words.tokens_found,
            {"prefix_cache_hit_ratio": None},
            "600,000 prompt tokens in, 300,000 out",
            id="tokens without a prefix cache",
        ),
        pytest.param(
            words.outcomes_found,
            {"requests__lost": {"low": 0, "high": 12}},
            "1,990 of 2,000 finished requests succeeded; up to 12 more may have "
            "finished unseen before a server restarted or died",
            id="requests lost in restarts",
        ),
        pytest.param(
            words.cost_found,
            {},
            "$6.67 per million output tokens at 67 % of capacity; $4.44 if it were full",
            id="on the cost curve",
        ),
        pytest.param(
            words.cost_found,
            {"cost__utilisation": unknown(WHY)},
            "$6.67 per million output tokens; how much of the capacity that used is not known: "
            + WHY,
            id="somewhere on the cost curve",
        ),
        pytest.param(
            words.cost_per_request_found,
            {},
            "$1.00 per 1,000 requests over the whole window; fewer requests share the bill of a "
            "quiet hour",
            id="the cost of a request in the unit of the chart's axis",
        ),
        pytest.param(
            words.regime_found,
            {"saturation__first_limit": None},
            "Most of the time: waiting for clients",
            id="no limit",
        ),
    ],
)
def test_found(function, changes, text):
    assert function(answer(**changes)).replace("\xa0", " ") == text
