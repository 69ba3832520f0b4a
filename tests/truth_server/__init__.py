"""An independent model of an LLM server, to compare the estimator's figures with a known truth.

It shares no law with `vllm_simulator`: other step times, another scheduler, other loads. Only
the written window (`windows.py`) is the package's. `python -m bench.capacity_truth` runs it.
"""
