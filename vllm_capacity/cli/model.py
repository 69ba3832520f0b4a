"""`model`: how much memory a model takes, and how many users fit, by arithmetic."""

from __future__ import annotations

import json
from typing import Any

import click

from vllm_capacity.cli.options import columns
from vllm_capacity.errors import InputError
from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import Llm, find_llm, weight_dtype
from vllm_capacity.render.terminal import model_text
from vllm_capacity.verdicts.hardware.serving import users_that_fit


@click.command(short_help="Show the memory a model needs, and how many users fit.")
@click.argument("name")
@click.option("--dtype", default="auto", help="Weight type; auto: as published.")
@click.option("--kv-dtype", default="auto", help="KV cache type: auto (16 bits) or fp8.")
@click.option(
    "--gpu", default=None, help="GPU for the number of users: gpu-form_factor, or gpu-any."
)
@click.option("--gpus", type=int, default=1, show_default=True, help="GPUs per replica.")
@click.option(
    "--tokens", type=click.IntRange(1, 10**12), default=None, help="Context tokens per user."
)
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
def model(
    name: str,
    dtype: str,
    kv_dtype: str,
    gpu: str | None,
    gpus: int,
    tokens: int | None,
    as_json: bool,
) -> None:
    """Show the memory for weights and KV cache of model NAME, and how many users fit."""
    llm = find_llm(name)
    chosen = llm.weights_dtype if dtype == "auto" else weight_dtype(dtype)
    if gpus < 1:
        raise InputError(f"--gpus must be 1 or more, found {gpus}.")
    fit = _users(llm, chosen, kv_dtype, gpu, gpus, tokens)
    if as_json:
        click.echo(json.dumps(_facts(llm, chosen, kv_dtype, fit), ensure_ascii=False))
        return
    text = model_text(llm, dtype=chosen, kv_dtype=kv_dtype, users=fit, width=columns())
    click.echo(text, nl=False)


def _users(
    llm: Llm, dtype: str, kv_dtype: str, gpu: str | None, gpus: int, tokens: int | None
) -> Estimate:
    span = None if gpu is None else find_gpu(gpu)
    if span is None or tokens is None:
        return Estimate.unknown("users need --gpu and --tokens")
    return users_that_fit(llm, dtype=dtype, kv_dtype=kv_dtype, span=span, gpus=gpus, tokens=tokens)


def _facts(llm: Llm, dtype: str, kv_dtype: str, users: Estimate) -> dict[str, Any]:
    counted = {"low": users.low, "mid": users.mid, "high": users.high}
    return {
        "model": llm.model,
        "dtype": dtype,
        "kv_bytes_per_token": round(llm.kv_bytes_per_token(kv_dtype)),
        "kv_fixed_bytes_per_sequence": round(llm.kv_fixed_bytes_per_sequence(kv_dtype)),
        "weights_bytes": round(llm.weights_bytes(dtype)),
        "users": counted if users.is_known else None,
        "users_basis": list(users.basis),
        "source": f"{llm.source} ({llm.date})",
        "note": llm.note,
        "reason": users.reason,
    }
