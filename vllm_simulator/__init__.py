"""A step-by-step vLLM simulator with known truth, for example data and for checking methods.

It is separate from the product: `vllm_capacity` imports it for the `simulate` command only. It uses
the product's metric catalog and the rows that a source returns. Its output is never telemetry, and
is labeled as simulated wherever it is shown.
"""
