"""Robust z-scores against SciPy's estimators."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation, theilslopes

from bora_analysis.fleet.robust import NORMAL_MAD, family, standing

NUMBERS = st.floats(-100, 100).map(lambda x: round(x, 3))


@given(st.lists(st.tuples(NUMBERS, st.integers(0, 30)), min_size=1, max_size=30))
def test_trend_and_deviation_are_those_of_scipy(pairs: list[tuple[float, int]]) -> None:
    values, depth = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    found = standing(values, depth)
    with np.errstate(invalid="ignore"):  # of its interval, which is not asked for
        slope = theilslopes(values, depth)[0] if len(set(depth)) > 1 else 0.0
    rest = values - slope * depth
    np.testing.assert_allclose(found.expected, np.median(rest) + slope * depth, atol=1e-9)
    spread = float(median_abs_deviation(rest)) / NORMAL_MAD
    if spread > 1e-6:
        np.testing.assert_allclose(found.z, (rest - np.median(rest)) / spread, atol=1e-6)


@given(st.lists(NUMBERS, min_size=5, max_size=20), st.floats(-3, 3), st.floats(-50, 50), st.floats(0.5, 4))
def test_a_line_and_a_scale_change_nothing(values: list[float], slope: float, start: float, by: float) -> None:
    y = np.array(values) + np.arange(len(values)) % 3  # not all equal
    one, two = standing(y), standing(by * y + start + slope * np.arange(y.size))
    steady = np.abs(one.z) < 1e6  # where the MAD is not rounding alone
    np.testing.assert_allclose(two.z[steady], one.z[steady], rtol=1e-4, atol=1e-4)


def test_one_wild_value_does_not_hide_itself() -> None:
    y = np.sin(np.arange(12.0))
    y[5] = 1e6
    found = standing(y)
    assert np.argmax(found.z) == 5
    assert found.z[5] > 1e5
    assert np.abs(np.delete(found.z, 5)).max() < 5


def test_values_that_are_missing_and_families_without_spread() -> None:
    found = standing([1.0, np.nan, 2.0, np.inf, 3.0])
    assert np.isnan(found.z[[1, 3]]).all()
    np.testing.assert_array_equal(found.z[[0, 2, 4]], 0)  # on one line
    assert standing([1.0, 2.0, 3.0, 9.0, 5.0, 6.0]).z.tolist() == [0, 0, 0, np.inf, 0, 0]
    assert np.isnan(standing([np.nan]).z).all()
    assert standing([]).z.size == 0


@pytest.mark.parametrize("layers", [8, 12, 32, 96])
def test_how_often_normal_families_raise_the_alarm(layers: int) -> None:
    """log σ₁ that is normal about a line, with a deviation of 0.3: 30 % from layer to layer."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        y = 0.02 * np.arange(layers) + 0.3 * rng.standard_normal(layers)
        found = standing(y)
        alarms += bool(np.any((found.z > 6) & (y - found.expected > np.log(3))))
    assert alarms <= 3


def test_families() -> None:
    assert family("model.layers.3.self_attn.q_proj") == family("model.layers.31.self_attn.q_proj")
    assert family("h.1.mlp.fc1") != family("h.1.mlp.fc2")
    assert pytest.approx(0.6744897501960817) == NORMAL_MAD
