"""How long users waited, and for what: tables beside the charts of latency, and a verdict."""

from __future__ import annotations

from vllm_capacity.figures.phases import Phase, phases
from vllm_capacity.render.numbers import Write, count, number, percent, seconds
from vllm_capacity.render.prose.estimates import line, sure
from vllm_capacity.render.sections.elements import Piece, table
from vllm_capacity.render.study import Study
from vllm_capacity.render.text import Said, said

_LATENCIES = {
    "ttft_seconds": "first token",
    "itl_seconds": "between two tokens",
    "e2e_seconds": "whole answer",
}
_TARGETS = {
    "ttft": ("first token", "ttft_slo_seconds"),
    "itl": ("between two tokens", "itl_slo_seconds"),
}
_PHASES = {
    "queue": "waiting for a place among the running requests",
    "prefill": "reading the prompt, up to the first token",
    "decode": "writing the answer, from the first token to the last",
}


def work(asked: Study) -> Piece:
    """How much came: requests and tokens, in all, a second, and a request; exact counts."""
    answer = asked.answer
    finished, rate = answer["requests"]["finished"], answer["throughput"]["requests_per_second"]
    kinds = {
        "prompt tokens": answer["tokens"]["prompt"],
        "output tokens": answer["tokens"]["generation"],
    }
    rows = [["finished requests", _or_dash(finished, count), _or_dash(rate, number), "1"]]
    for kind, tokens in kinds.items():
        is_known = None not in (tokens, finished, rate) and finished
        each = tokens / finished if is_known else None
        per_second = each * rate if is_known else None
        rows.append(
            [kind, _or_dash(tokens, count), _or_dash(per_second, number), _or_dash(each, number)]
        )
    return table(["what", "in all", "a second", "a request, on average"], rows, numeric=(1, 2, 3))


def quantiles(asked: Study) -> Piece:
    """p50, p95 and p99 of each latency: as PromQL would say, the bounds, and the best guess."""
    rows = []
    for family, name in _LATENCIES.items():
        for quantile, found in asked.answer["latency"][family].items():
            like = found["value"] or found["lower"]
            shown = (found[key] for key in ("lower", "upper", "value", "estimate"))
            rows.append([name, quantile, *(_or_dash(each, seconds, like=like) for each in shown)])
    return table(
        ["how long", "quantile", "at least", "at most", "as PromQL interpolates", "best guess"],
        rows,
        numeric=(2, 3, 4, 5),
    )


def waits(asked: Study) -> Piece:
    """Where the time of a finished request went, on average: queue, prefill, decode."""
    rows = [
        [
            _PHASES[each.name],
            _or_dash(each.mean_seconds, seconds),
            _or_dash(each.share_ratio, percent),
        ]
        for each in _phases(asked)
    ]
    return table(["phase", "a request, on average", "of all the time"], rows, numeric=(1, 2))


def promises(asked: Study) -> Piece:
    """The share of first tokens, and of gaps between tokens, that came within their target."""
    rows = []
    for short, (name, term) in _TARGETS.items():
        target, met = getattr(asked.terms, term), asked.answer["slo"][f"{short}_attainment"]
        shown = "none given" if target is None else seconds(target)
        _, *estimate = line(name, met, percent)
        rows.append([name, shown, *estimate])
    return table(["how long", "target", "met it", "", "what it rests on"], rows, numeric=(1, 2))


def latency_verdict(asked: Study) -> Said:
    """How long users waited, how sure that is, and what they waited for, in one sentence."""
    ttft = asked.answer["latency"]["ttft_seconds"]
    half, most = ttft["p50"], ttft["p95"]
    if half["estimate"] is None:
        return said("No first token was observed: how long users wait is not known.")
    parts = [f"half of all first tokens came within {seconds(half['estimate'])}"]
    if most["estimate"] is None:
        parts.append(f"the slowest 5 % took more than {seconds(most['lower'])}")
    else:
        low, high = (seconds(most[key], like=most["estimate"]) for key in ("lower", "upper"))
        parts.append(f"95 % within {seconds(most['estimate'])} (surely between {low} and {high})")
    met = asked.answer["slo"]["ttft_attainment"]
    if met["mid"] is not None:
        target = seconds(asked.terms.ttft_slo_seconds or 0.0)
        parts.append(f"{sure(met, percent)} met the target of {target}")
    return said(f"{', '.join(parts)}{_waited_for(asked)}.")


def _waited_for(asked: Study) -> str:
    means = {each.name: each.mean_seconds for each in _phases(asked)}
    queue, prefill = means["queue"], means["prefill"]
    if queue is None or prefill is None or not queue + prefill:
        return ""
    name = "a place" if queue > prefill else "their prompt to be read"
    share = max(queue, prefill) / (queue + prefill)
    return f"; {percent(share)} of the wait for a first token was for {name}"


def _phases(asked: Study) -> tuple[Phase, ...]:
    return phases(asked.opened, part=asked.part)


def _or_dash(value: float | None, write: Write, like: float | None = None) -> str:
    return "–" if value is None else write(value, like)
