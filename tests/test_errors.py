"""What others wrote, in messages of ours."""

import pytest

from vllm_capacity.errors import SourceError, plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        pytest.param("vllm at 8000 ✓ 🦙", "vllm at 8000 ✓ 🦙", id="what can be read stays"),
        pytest.param("a\x1b[31mb", "a [31mb", id="a terminal's escape"),
        pytest.param("a\x9b2Jb\x07", "a 2Jb ", id="an escape of one character, and a bell"),
        pytest.param("a\r\n\tb", "a b", id="line ends"),
        pytest.param("a\u202eb\u2066", "a b ", id="marks of direction"),
        pytest.param("a\ud800b", "a b", id="half a surrogate pair"),
    ],
)
def test_nothing_that_moves_the_cursor_is_shown(text, shown):
    assert (plain(text), str(SourceError(text))) == (shown, shown)
