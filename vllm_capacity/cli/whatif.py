"""`whatif`: performance on another GPU, or on the same one under another load."""

from __future__ import annotations

import json

import click

from vllm_capacity.assumptions import pricing
from vllm_capacity.cli.options import bounded, columns
from vllm_capacity.render.terminal import whatif_text
from vllm_capacity.verdicts.hardware.elsewhere import answer_elsewhere
from vllm_capacity.verdicts.hardware.question import question_of


@click.command(short_help="Estimate output tokens per second on another GPU.")
@click.option("--model", required=True, help="Model, as in data/llms.csv or as published.")
@click.option(
    "--from-gpu", required=True, help="GPU of the measurement: gpu-form_factor, or gpu-any."
)
@click.option(
    "--output-tokens-per-second",
    type=float,
    callback=bounded,
    required=True,
    help="Measured output tokens/s.",
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
    "--dtype",
    default="auto",
    show_default=True,
    help="Weight type of the measurement; auto: as published.",
)
@click.option("--to-dtype", default=None, help="Weight type on the other GPU; default: --dtype.")
@click.option(
    "--kv-dtype", default="auto", show_default=True, help="KV cache type: auto (16 bits) or fp8."
)
@click.option(
    "--to-kv-dtype", default=None, help="KV cache type on the other GPU; default: --kv-dtype."
)
@click.option("--gpus", type=int, default=1, show_default=True, help="GPUs of the measured engine.")
@click.option("--to-gpu", required=True, help="GPU to estimate: gpu-form_factor, or gpu-any.")
@click.option(
    "--clients",
    type=float,
    callback=bounded,
    default=None,
    help="Concurrent requests of the load test.",
)
@click.option(
    "--requests-per-second",
    type=float,
    callback=bounded,
    default=None,
    help="Arrival rate of an open load.",
)
@click.option(
    "--itl-ms", type=float, callback=bounded, default=None, help="Mean ITL measured with it."
)
@click.option(
    "--ttft-ms", type=float, callback=bounded, default=None, help="Mean TTFT measured with it."
)
@click.option(
    "--at-clients",
    type=float,
    callback=bounded,
    default=None,
    help="Concurrent requests to estimate for; default: --clients.",
)
@click.option(
    "--at-requests-per-second",
    type=float,
    callback=bounded,
    default=None,
    help="Arrival rate to estimate for; default: --requests-per-second.",
)
@click.option(
    "--to-gpus",
    type=int,
    default=None,
    help="GPUs to estimate for, in any split into replicas; default: one engine of --gpus.",
)
@click.option(
    "--engine-version", default=None, help="vLLM version of the measurement, such as 0.18.0."
)
@click.option(
    "--to-engine-version",
    default=None,
    help="vLLM version to estimate for; default: --engine-version.",
)
@click.option("--usd-per-hour", help="Price per hour of the measured GPU: 1.64, or 1.2 to 1.9.")
@click.option(
    "--to-usd-per-hour", help="Price per hour of the other GPU; default: the price list's."
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
    kv_dtype: str,
    to_kv_dtype: str | None,
    gpus: int,
    to_gpu: str,
    clients: float | None,
    requests_per_second: float | None,
    itl_ms: float | None,
    ttft_ms: float | None,
    at_clients: float | None,
    at_requests_per_second: float | None,
    to_gpus: int | None,
    engine_version: str | None,
    to_engine_version: str | None,
    usd_per_hour: str | None,
    to_usd_per_hour: str | None,
    as_json: bool,
) -> None:
    """Estimate throughput and latencies on another GPU: low, mid and high, with their basis.

    If you know the load of the measurement, give it (--clients or --requests-per-second): the other
    GPU is then estimated under the same load, or under --at-clients or --at-requests-per-second (on
    the same GPU, too). Otherwise the load is inferred from the rate. If there is no estimate, the
    reason is printed, with exit status 0. If both GPUs have a price, the output says which gives
    more tokens per dollar, and at which price, or error of the estimate, the order flips.
    """
    question = question_of(
        model=model,
        from_gpu=from_gpu,
        to_gpu=to_gpu,
        output_tokens_per_second=output_tokens_per_second,
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        gpus=gpus,
        dtype=None if dtype == "auto" else dtype,
        to_dtype=None if to_dtype == "auto" else to_dtype,
        clients=clients,
        requests_per_second=requests_per_second,
        at_clients=at_clients,
        at_requests_per_second=at_requests_per_second,
        itl_seconds=None if itl_ms is None else itl_ms / 1e3,
        ttft_seconds=None if ttft_ms is None else ttft_ms / 1e3,
        kv_dtype=kv_dtype,
        to_kv_dtype=to_kv_dtype,
    )
    found = answer_elsewhere(
        question,
        to_gpus=to_gpus,
        engine_version=engine_version,
        to_engine_version=to_engine_version,
        usd_per_gpu_hour=pricing(usd_per_hour).usd_per_gpu_hour,
        to_usd_per_gpu_hour=pricing(to_usd_per_hour).usd_per_gpu_hour,
    )
    if as_json:
        click.echo(json.dumps(found.as_dict(), ensure_ascii=False))
    else:
        weights, gpu = question.to_dtype, question.to_gpu.label
        where = f"{question.llm.model}, weights as {weights}, on {to_gpus or gpus} × {gpu}"
        click.echo(whatif_text(found, where=where, width=columns()), nl=False)
