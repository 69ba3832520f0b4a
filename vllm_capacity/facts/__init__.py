"""Facts that hold without any telemetry: vLLM's metric families, GPUs, prices, model shapes."""
