"""What is suggested for a name nobody knows."""

import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.facts.gpus import find_gpu
from vllm_capacity.facts.llms import find_llm
from vllm_capacity.facts.nearest import nearest

NAMES = (
    "llama-3-8b",
    "llama-3-70b",
    "qwen3-8b",
    "gpt-oss-20b",
    "gpt-oss-120b",
    "mistral-7b",
    "l4-pcie",
)


@pytest.mark.parametrize(
    ("asked", "near"),
    [
        pytest.param("llama", ["llama-3-8b", "llama-3-70b"], id="a family alone"),
        pytest.param("tiny-random-llama", ["llama-3-8b", "llama-3-70b"], id="a family at the end"),
        pytest.param("gpt-oss-21b", ["gpt-oss-20b", "gpt-oss-120b"], id="a size there is not"),
        pytest.param("qwen", ["qwen3-8b"], id="the beginning of a family"),
        pytest.param("qwen3.5-9b", ["qwen3-8b"], id="longer than a family"),
        pytest.param("70b", ["llama-3-70b"], id="the middle of a name"),
        pytest.param("lama-3-8b", ["llama-3-8b"], id="a letter lacking"),
        pytest.param("l4s", [], id="two letters are the beginning of anything"),
        pytest.param("banana", [], id="nothing near"),
        pytest.param("", [], id="nothing asked"),
    ],
)
def test_nearest(asked, near):
    assert nearest(asked, NAMES) == near


def test_at_most_four_are_named():
    assert len(nearest("a", [f"a{number}" for number in range(9)])) == 4


@pytest.mark.parametrize(
    ("find", "asked", "says"),
    [
        pytest.param(find_llm, "llama", "nearest: meta-llama/Llama-3", id="Llamas for a llama"),
        pytest.param(
            find_llm, "tiny-random-llama", "nearest: meta-llama/Llama-3", id="a served name"
        ),
        pytest.param(find_llm, "banana", "llms.csv, and no name near it", id="no model is near"),
        pytest.param(find_gpu, "A100", "nearest: A100-80GB-SXM, A100-40GB", id="without memory"),
        pytest.param(find_gpu, "banana", "and no name near it", id="no GPU is near"),
    ],
)
def test_error_names_what_is_near(find, asked, says):
    with pytest.raises(InputError, match=says):
        find(asked)
