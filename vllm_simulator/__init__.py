"""A vLLM engine in small steps, whose truth is known: it makes example data and checks methods.

It stands beside the product: `vllm_capacity` imports it for the `simulate` command only, and it
takes from there the metric catalog and the rows that a source returns. What it writes is never
telemetry, and is labeled as simulated wherever it is shown.
"""
