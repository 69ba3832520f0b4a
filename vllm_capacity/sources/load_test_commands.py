"""Ready-to-run command lines that load a server with a number of clients, one per tool.

As of guidellm 0.7, aiperf 0.14 and vLLM 0.32. Prompts and outputs have fixed lengths, so that loads
are comparable; there are ten requests per client, so that the start and end of a test have little
weight. Every command saves a result that `fit` reads.
"""

from __future__ import annotations

import shlex

from msgspec import Struct

from vllm_capacity.errors import InputError

TOOLS = ("vllm", "guidellm", "aiperf")
"""`vllm` is `vllm bench serve`."""
_REQUESTS_PER_CLIENT, _MIN_REQUESTS = 10, 50


class Workload(Struct, frozen=True):
    """The server and the requests of a load test; `model` is the server's name for it."""

    model: str = "MODEL"
    url: str = "http://localhost:8000"
    input_tokens: int = 1000
    output_tokens: int = 200


def load_test_command(tool: str, clients: int, workload: Workload) -> str:
    """The tool's command line to keep `clients` clients busy; InputError for an unknown tool."""
    requests = max(_MIN_REQUESTS, _REQUESTS_PER_CLIENT * clients)
    name = f"load-{clients}"
    if tool == "vllm":
        return shlex.join(
            [
                *("vllm", "bench", "serve", "--base-url", workload.url, "--model", workload.model),
                *("--dataset-name", "random", "--ignore-eos"),
                *("--random-input-len", str(workload.input_tokens)),
                *("--random-output-len", str(workload.output_tokens)),
                *("--max-concurrency", str(clients), "--num-prompts", str(requests)),
                *("--percentile-metrics", "ttft,tpot,itl,e2el", "--metric-percentiles", "95"),
                *("--save-result", "--result-filename", f"{name}.json"),
            ]
        )
    lengths = f"prompt_tokens={workload.input_tokens},output_tokens={workload.output_tokens}"
    if tool == "guidellm":
        return shlex.join(
            [
                *("guidellm", "run"),
                *(
                    "--backend",
                    f"kind=openai_http,target={workload.url},model={workload.model}",
                ),
                *("--profile", f"kind=concurrent,streams={clients}"),
                *("--constraint", f"kind=max_requests,count={requests}"),
                *("--data", f"kind=synthetic_text,{lengths}"),
                *("--output", f"kind=json,path={name}.json"),
            ]
        )
    if tool == "aiperf":
        return shlex.join(
            [
                *("aiperf", "profile", "--model", workload.model, "--url", workload.url),
                *("--endpoint-type", "chat", "--streaming"),
                *("--synthetic-input-tokens-mean", str(workload.input_tokens)),
                *("--output-tokens-mean", str(workload.output_tokens)),
                *("--extra-inputs", "ignore_eos:true", "--concurrency", str(clients)),
                *("--request-count", str(requests), "--artifact-dir", name),
            ]
        )
    raise InputError(f"No load test tool {tool!r}; use one of {', '.join(TOOLS)}.")
