"""The frozen answers of the what-if: `python tests/verdicts/whatif_baseline.py` renews them.

The questions are in `whatif_baseline.json`, each with the answer it was given last.
"""

import json
from pathlib import Path

from vllm_capacity.estimate import Estimate
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.throughput import measurements
from vllm_capacity.verdicts.hardware.question import Question
from vllm_capacity.verdicts.hardware.what_if import what_if

BASELINE = Path(__file__).parent / "whatif_baseline.json"


def cases() -> list[dict]:
    return json.loads(BASELINE.read_text(encoding="utf-8"))


def answer(case: dict) -> Estimate:
    asked = Question(
        llm=find_llm(case["model"]),
        dtype=case["dtype"],
        to_dtype=case["to_dtype"],
        from_gpu=find_gpu(case["from_gpu"]),
        to_gpu=find_gpu(case["to_gpu"]),
        gpus=case["gpus"],
        output_tokens_per_second=case["rate"],
        input_tokens=case["input_tokens"],
        output_tokens=case["output_tokens"],
    )
    return what_if(asked, published=measurements())


def main() -> None:
    renewed = []
    for case in cases():
        found = answer(case)
        ends = {end: float(f"{getattr(found, end):.5g}") for end in ("low", "mid", "high")}
        renewed.append({**case, **ends})
    fresh = BASELINE.with_suffix(".tmp")
    fresh.write_text(json.dumps(renewed, indent=1) + "\n", encoding="utf-8")
    fresh.replace(BASELINE)
    print(f"{len(renewed)} answers written to {BASELINE.name}")


if __name__ == "__main__":
    main()
