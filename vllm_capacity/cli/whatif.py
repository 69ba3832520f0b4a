"""`whatif`: what another GPU would do, from a throughput somebody measured."""

from __future__ import annotations

import json

import click

from vllm_capacity.cli.reading import bounded
from vllm_capacity.cli.screen import columns
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm, weight_dtype
from vllm_capacity.facts.prices import usual_forms
from vllm_capacity.facts.throughput import measurements
from vllm_capacity.render.terminal import whatif_text
from vllm_capacity.verdicts.hardware.question import Load, Question
from vllm_capacity.verdicts.hardware.what_if import what_if


@click.command(short_help="Output tokens per second on another GPU.")
@click.option("--model", required=True, help="Model, as in data/llms.csv or as published.")
@click.option("--from-gpu", required=True, help="Measured on: gpu-form_factor, or gpu-any.")
@click.option(
    "--output-tokens-per-second",
    type=float,
    callback=bounded,
    required=True,
    help="Measured there.",
)
@click.option(
    "--input-tokens",
    type=float,
    callback=bounded,
    required=True,
    help="Mean prompt tokens per request.",
)
@click.option(
    "--output-tokens",
    type=float,
    callback=bounded,
    required=True,
    help="Mean output tokens per request.",
)
@click.option(
    "--dtype", default="auto", show_default=True, help="Weight type measured; auto: as published."
)
@click.option("--to-dtype", default=None, help="Weight type on the other GPU; default: --dtype.")
@click.option("--gpus", type=int, default=1, show_default=True, help="GPUs, on both sides.")
@click.option("--to-gpu", required=True, help="Asked about: gpu-form_factor, or gpu-any.")
@click.option(
    "--clients",
    type=float,
    callback=bounded,
    default=None,
    help="Requests a load test held in flight.",
)
@click.option(
    "--requests-per-second",
    type=float,
    callback=bounded,
    default=None,
    help="Requests that came, of an open load.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the estimate as JSON.")
def whatif(
    model: str,
    from_gpu: str,
    output_tokens_per_second: float,
    input_tokens: float,
    output_tokens: float,
    dtype: str,
    to_dtype: str | None,
    gpus: int,
    to_gpu: str,
    clients: float | None,
    requests_per_second: float | None,
    as_json: bool,
) -> None:
    """Output tokens per second on another GPU: low, mid, high, and what it rests on.

    Say what load it was measured under where you know it (--clients or --requests-per-second): the
    other GPU is then asked under the same. Else the rate itself has to tell a light load from a
    full one. A refusal is an answer too: not known, with its reason, exit status 0.
    """
    llm = find_llm(model)
    measured = llm.weights_dtype if dtype == "auto" else weight_dtype(dtype)
    wanted = measured if to_dtype in (None, "auto") else weight_dtype(to_dtype or "")
    question = Question(
        llm=llm,
        dtype=measured,
        to_dtype=wanted,
        from_gpu=find_gpu(from_gpu),
        to_gpu=find_gpu(to_gpu),
        gpus=gpus,
        output_tokens_per_second=output_tokens_per_second,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        load=Load(clients=clients, requests_per_second=requests_per_second),
    )
    prefer = {find_gpu(gpu).rows[0].gpu: usual_forms(gpu) for gpu in (from_gpu, to_gpu)}
    found = what_if(question, published=measurements(), prefer=prefer)
    if as_json:
        click.echo(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        where = f"{llm.model}, weights as {wanted}, on {gpus} × {question.to_gpu.label}"
        click.echo(whatif_text(found, where=where, width=columns()), nl=False)
