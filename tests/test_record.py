"""Results: attributes, one way into JSON, and the keys of the release before with a warning."""

from __future__ import annotations

import json

import pytest

from tests.render.answer_by_hand import ANSWER, START
from vllm_capacity.record import plain


@pytest.mark.parametrize(
    ("part", "key", "expected"),
    [
        pytest.param("cost", "utilisation", ANSWER.cost.utilization, id="renamed since"),
        pytest.param("saturation", "first_limit", "kv-bound", id="another one"),
        pytest.param("tokens", "prompt", 600_000, id="as it was"),
    ],
)
def test_an_old_key_is_read_with_a_warning(part, key, expected):
    with pytest.warns(DeprecationWarning, match=f"{key}.*deprecated; use the attribute"):
        assert getattr(ANSWER, part)[key] == expected


def test_a_key_that_never_existed_is_an_error():
    with pytest.raises(KeyError):
        ANSWER["nonsense"]


def test_a_result_is_not_iterated_by_position():
    with pytest.raises(TypeError, match="not iterable"):
        list(ANSWER)


def test_only_plain_turns_a_result_into_json():
    result = json.loads(json.dumps(plain(ANSWER)))
    assert result["window"]["start"] == START.isoformat().replace("+00:00", "Z")
    assert result["cost"]["allocation_usd"]["kind"] == "counted"
    assert result == ANSWER.as_dict()


def test_a_result_is_printed_one_field_per_line():
    lines = repr(ANSWER.saturation).splitlines()
    assert lines[0] == "Saturation"
    assert any("bottleneck" in line and "kv-bound" in line for line in lines)
    assert "<th>bottleneck</th>" in ANSWER.saturation._repr_html_()
