import pytest

from vllm_capacity.render.engines import short_names


@pytest.mark.parametrize(
    ("names", "short"),
    [
        pytest.param([], [], id="no engine"),
        pytest.param(["gpu-0:8000/0"], ["gpu-0:8000/0"], id="one keeps its name"),
        pytest.param(
            ["gpu-1:8000/0", "gpu-10:8000/0"], ["gpu-1", "gpu-10"], id="the port of all is cut"
        ),
        pytest.param(["a:1/0", "a:1/1"], ["a:1/0", "a:1/1"], id="short names begin alike"),
        pytest.param(
            ["vllm-llama-70b-7d9f8-x2abc:8000/0", "vllm-llama-70b-7d9f8-k4abc:8000/0"],
            ["…x2abc", "…k4abc"],
            id="long ones lose their beginning, at a word",
        ),
        pytest.param(
            ["a-very-long-name-of-one:8000/0", "10.0.0.1:9000/0"],
            ["a-very-long-name-of-one:8000", "10.0.0.1:9000"],
            id="nothing in common but the end",
        ),
    ],
)
def test_short_names_tell_engines_apart(names, short):
    assert list(short_names(names).values()) == short
