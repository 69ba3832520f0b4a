"""Engines that did much less than their share: a fact of the bill, not a fault of the telemetry."""

from types import SimpleNamespace

import polars as pl
import pytest

from vllm_capacity.verdicts.quality.series import imbalance


def engines(*tokens, models=None):
    """Engines that were billed for ten hours each with these tokens, of one model or more."""
    names = [f"gpu-{i}" for i in range(len(tokens))]
    columns = {"instance": names, "engine": ["0"] * len(tokens), "hours": [10.0] * len(tokens)}
    columns["model_name"] = models or ["a-model"] * len(tokens)
    frame = pl.DataFrame({**columns, "output_tokens": [float(each) for each in tokens]})
    return SimpleNamespace(engines=frame)


@pytest.mark.parametrize(
    ("tokens", "severities", "says"),
    [
        pytest.param([100, 0], ["info"], "because it was idle", id="an idle one"),
        pytest.param([100, 10], ["info"], "8.18 engine-hours were paid", id="one that did little"),
        pytest.param([100, 90], [], "", id="even ones"),
        pytest.param([0, 0], [], "", id="a fleet without any output has no shares"),
        pytest.param([100], [], "", id="one alone"),
    ],
)
def test_an_engine_below_its_share_is_info_and_affects_no_figure(tokens, severities, says):
    found = imbalance(engines(*tokens))
    assert [each.severity for each in found] == severities
    assert all(says in each.effect for each in found)


def test_an_engine_is_measured_by_those_of_its_own_model():
    """A small model produces more tokens than a large one; that is no imbalance."""
    found = imbalance(engines(100, 98, 6, 1, models=["small", "small", "large", "large"]))
    assert len(found) == 1
    assert "gpu-3/0 produced 14 % of the output tokens of its model in 50 %" in found[0].effect
