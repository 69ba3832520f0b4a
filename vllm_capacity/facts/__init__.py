"""Facts that need no telemetry: vLLM's metric families, GPUs, prices, model shapes."""
