import pytest

from vllm_capacity.errors import InputError
from vllm_capacity.selector import selector

POD = {"namespace": "team-a", "pod": "vllm-0", "note": 'say "}"'}


@pytest.mark.parametrize(
    ("text", "bare", "matches"),
    [
        pytest.param('{namespace="team-a"}', 'namespace="team-a"', True, id="as written"),
        pytest.param('namespace="team-a"', 'namespace="team-a"', True, id="bare"),
        pytest.param('{namespace="team"}', 'namespace="team"', False, id="whole values only"),
        pytest.param('{pod=~"vllm-.*"}', 'pod=~"vllm-.*"', True, id="an expression"),
        pytest.param('{pod=~"vllm"}', 'pod=~"vllm"', False, id="an expression of a part"),
        pytest.param('{pod!~"vllm-.*"}', 'pod!~"vllm-.*"', False, id="no such expression"),
        pytest.param('{zone!="a"}', 'zone!="a"', True, id="a label that is not there"),
        pytest.param('{zone=""}', 'zone=""', True, id="empty is not there"),
        pytest.param(
            ' { pod = "vllm-0", namespace!~"y,}" , } ',
            'pod = "vllm-0", namespace!~"y,}"',
            True,
            id="two, with space, and a brace in a value",
        ),
        pytest.param('{note="say \\"}\\""}', 'note="say \\"}\\""', True, id="quotes in a value"),
    ],
)
def test_label_matchers_are_read_as_prometheus_reads_them(text, bare, matches):
    found = selector(text)
    assert (found.bare, found.matches(POD)) == (bare, matches)


@pytest.mark.parametrize(
    "text", ["", "{}", "team-a", "a=b", 'x{a="b"}', '{a="b"', '{a="b"} or {c="d"}', '{a="b\n"}']
)
def test_invalid_label_matchers_are_reported(text):
    with pytest.raises(InputError, match="expected label matchers of Prometheus"):
        selector(text)


def test_an_unreadable_expression_is_reported():
    with pytest.raises(InputError, match="Cannot read the regular expression"):
        selector('{pod=~"a("}')
