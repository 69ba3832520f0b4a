"""Models of a vLLM engine with known truth: a step simulator and a queue."""
