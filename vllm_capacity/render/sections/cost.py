"""What a request costs and how much of it is idle: tables beside the charts of money."""

from __future__ import annotations

from collections.abc import Mapping

from vllm_capacity.answers import cost_by
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.api_prices import given_api_price
from vllm_capacity.render.numbers import Write, number, percent, usd, usd_per_thousand
from vllm_capacity.render.prose.estimates import is_unknown, line, reason, sure, value
from vllm_capacity.render.sections.elements import Piece, table
from vllm_capacity.render.study import Study
from vllm_capacity.render.text import Said, said
from vllm_capacity.verdicts.breakeven import BreakEven, break_even

_LINES: Mapping[str, tuple[str, Write]] = {
    "allocation_usd": ("the bill, idle time included", usd),
    "idle_usd": ("of it, paid for idle time", usd),
    "utilisation": ("used of the capacity", percent),
    "usd_per_request": ("1,000 requests", usd_per_thousand),
    "usd_per_request_at_knee": ("1,000 requests, were it full", usd_per_thousand),
    "usd_per_million_output_tokens": ("a million output tokens, all charged to output", usd),
    "usd_per_million_output_tokens_at_knee": ("the same, were it full", usd),
    "usd_per_million_total_tokens": ("a million tokens, input or output", usd),
    "usd_per_million_input_tokens_split": ("a million input tokens, bill split", usd),
    "usd_per_million_output_tokens_split": ("a million output tokens, bill split", usd),
    "tokens_per_usd": ("output tokens for a dollar", number),
}
_CHEAPER = {
    True: "the own server is cheaper",
    False: "the API is cheaper",
    None: "which is cheaper cannot be told",
}


def bill_lines(asked: Study) -> Piece:
    """Every cost figure of the window: value, interval, and what it rests on or why it is not."""
    cost = asked.answer["cost"]
    return table(
        ["what", "dollars, or as said", "", "what it rests on"],
        [line(name, cost[figure], write) for figure, (name, write) in _LINES.items()],
        numeric=(1,),
    )


def bill_by(asked: Study, by: str) -> Piece:
    """The bill by engine, instance, model or any label; last, the whole that they add up to."""
    found = cost_by(
        asked.opened, by=by, start=asked.part.start, end=asked.part.end, terms=asked.terms
    )
    shown: Mapping[str, Write] = {
        "allocation_usd": usd,
        "idle_usd": usd,
        "utilisation": percent,
        "usd_per_request": usd_per_thousand,
        "usd_per_million_output_tokens": usd,
    }
    rows = [
        [name, *(value(figures[figure], write) for figure, write in shown.items())]
        for name, figures in (*sorted(found["parts"].items()), ("the whole", found["whole"]))
    ]
    titles = [by, "bill", "idle", "used", "1,000 requests", "a million output tokens"]
    return table(titles, rows, numeric=(1, 2, 3, 4, 5))


def against_api(
    asked: Study, *, usd_per_million_input: float, usd_per_million_output: float, note: str
) -> Piece:
    """The own server against an API's price for the same requests, and where both cost the same."""
    found = _break_even(asked, usd_per_million_input, usd_per_million_output)
    if found is None:
        return table(["what"], [], empty=_NO_REQUESTS)
    rates = f"{usd(usd_per_million_input)} / {usd(usd_per_million_output)} a million in / out"
    requests = asked.answer["throughput"]["requests_per_second"]
    today = Estimate.exact(requests * 86_400, "this window's requests, all day long")
    lines: list[tuple[str, Estimate, Write]] = [
        ("1,000 requests, here", found.own_usd_per_request, usd_per_thousand),
        ("requests a day, here", today, number),
        ("requests a day at which both cost the same", found.requests_per_day, number),
        ("that is, used of the capacity", found.utilisation, percent),
        ("dollars a GPU-hour at which both cost the same", found.usd_per_gpu_hour, usd),
    ]
    rows = [
        [
            "1,000 requests, from the API",
            usd_per_thousand(found.api_usd_per_request),
            "",
            f"{rates}: {note}",
        ]
    ]
    rows += [line(name, estimate.as_dict(), write) for name, estimate, write in lines]
    return table(
        ["what", "value", "", "what it rests on"],
        rows,
        numeric=(1,),
        caption=f"In this window {_CHEAPER[found.is_own_cheaper]}.",
    )


def cost_verdict(asked: Study) -> Said:
    """What a request costs and how much of that is idle, in one sentence."""
    cost = asked.answer["cost"]
    each, used, knee = (
        cost[name] for name in ("usd_per_request", "utilisation", "usd_per_request_at_knee")
    )
    if each["mid"] is None:
        return said(f"What a request costs is not known: {reason(each)}.")
    text = f"1,000 requests cost {sure(each, usd_per_thousand)}"
    if is_unknown(used):
        return said(f"{text}; how much of that is idle is not known: {reason(used)}.")
    idle = Estimate(**used).map(lambda ratio: 1 - ratio, is_decreasing=True).as_dict()
    text += f", {sure(idle, percent)} of it for idle time"
    if not is_unknown(knee):
        text += f"; a full server would do them for {sure(knee, usd_per_thousand)}"
    return said(f"{text}.")


_NO_REQUESTS = "No request finished in this window: there is nothing to compare with an API."


def _break_even(asked: Study, usd_input: float, usd_output: float) -> BreakEven | None:
    answer = asked.answer
    finished, tokens = answer["requests"]["finished"], answer["tokens"]
    rate = answer["throughput"]["requests_per_second"]
    if not finished or not rate or None in (tokens["prompt"], tokens["generation"]):
        return None
    return break_even(
        given_api_price(usd_input, usd_output),
        input_tokens=tokens["prompt"] / finished,
        output_tokens=tokens["generation"] / finished,
        usd_per_gpu_hour=asked.terms.usd_per_gpu_hour or Estimate.unknown("no price was given"),
        gpus=answer["window"]["engines"] * asked.terms.gpus_per_engine,
        capacity_output_tokens_per_second=Estimate(
            **answer["saturation"]["capacity_output_tokens_per_second"]
        ),
        requests_per_hour=3600 * rate,
    )
