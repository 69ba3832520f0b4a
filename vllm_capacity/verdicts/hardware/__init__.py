"""Other GPUs: what they would do, and which serve a model."""
