"""Other GPUs: what they would achieve, and which can serve a model."""
