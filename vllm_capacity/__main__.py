"""`python -m vllm_capacity` is the command line."""

from vllm_capacity.cli import main

main()
