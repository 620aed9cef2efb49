"""Metrics against their formulas by hand, and the order in which they must stand."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bora_analysis import lora, metrics
from bora_analysis.analysis.spectrum import Spectrum, Stack

spectra = arrays(np.float64, st.integers(1, 40), elements=st.one_of(st.just(0.0), st.floats(1e-12, 1e12)))


def test_by_hand():
    s = np.array([4.0, 2.0, 1.0, 0.0])
    assert metrics.energy(s) == 21
    assert metrics.frobenius_norm(s) == pytest.approx(np.sqrt(21))
    assert metrics.spectral_norm(s) == 4
    assert metrics.nuclear_norm(s) == 7
    assert metrics.stable_rank(s) == pytest.approx(21 / 16)
    assert metrics.participation_ratio(s) == pytest.approx(21**2 / (256 + 16 + 1))
    p = np.array([4, 2, 1]) / 7
    assert metrics.entropy_rank(s) == pytest.approx(np.exp(-np.sum(p * np.log(p))))
    assert [metrics.energy_rank(s, share) for share in (0.7, 16 / 21, 0.9, 20 / 21, 0.96, 1.0)] == [1, 1, 2, 2, 3, 3]
    assert metrics.numerical_rank(s, 1e-9) == 3
    assert metrics.condition(s, 1e-9) == 4
    assert metrics.effective_rank(s, 1.0) == 2  # above, not at, the threshold
    assert metrics.effective_rank(s) == 3
    assert metrics.rank_utilisation(s, 8) == 3 / 8
    assert metrics.hill_number(s, 0) == pytest.approx(3)


@settings(max_examples=1000)
@given(spectra)
def test_order_of_the_ranks(s):
    stable, participation, entropy = (metrics.hill_number(s, order) for order in (np.inf, 2, 1))
    nonzero = np.count_nonzero(s)
    slack = 1 + 1e-9
    assert metrics.stable_rank(s) == stable
    assert metrics.participation_ratio(s) == participation
    assert stable <= participation * slack
    assert participation <= entropy * slack
    assert entropy <= nonzero * slack
    assert entropy <= metrics.entropy_rank(s) * slack <= nonzero * slack**2
    ranks = [metrics.energy_rank(s, share) for share in (0.90, 0.95, 0.99, 1.0)]
    assert ranks == sorted(ranks)
    assert ranks[-1] <= nonzero
    assert (nonzero == 0) == (stable == 0) == (metrics.entropy_rank(s) == 0)


@settings(max_examples=300)
@given(spectra, st.sampled_from([1e-8, 0.5, 3.0, 1e8]), st.randoms(use_true_random=False))
def test_ranks_know_neither_scale_nor_order(s, scale, random):
    shuffled = s.copy()
    random.shuffle(shuffled)
    for rank in (metrics.stable_rank, metrics.participation_ratio, metrics.entropy_rank):
        assert rank(shuffled * scale) == pytest.approx(rank(s), rel=1e-6)


@settings(max_examples=300)
@given(spectra)
def test_effective_rank_as_a_curve(s):
    thresholds = np.geomspace(1e-13, 1e13, 27)
    curve = metrics.effective_rank(s, thresholds)
    assert curve.tolist() == [int((s > t).sum()) for t in thresholds]
    assert (np.diff(curve) <= 0).all()
    assert metrics.effective_rank(s, float(thresholds[3])) == curve[3]


@settings(max_examples=300)
@given(spectra, st.floats(0.01, 1.0))
def test_energy_rank_is_the_least_that_holds_the_share(s, share):
    k = metrics.energy_rank(s, share)
    energies = np.sort(s**2)[::-1]
    assert energies[:k].sum() >= share * energies.sum() * (1 - 1e-12)
    assert k == 0 or energies[: k - 1].sum() < share * energies.sum()


def test_numerical_rank_counts_what_the_computation_can_tell_from_nothing():
    s = np.array([1.0, 1e-4, 1e-9, 1e-18])
    ranks = [metrics.numerical_rank(s, metrics.rounding_tolerance(s, reach)) for reach in (None, 1e3, 1e8, 1e20)]
    assert ranks == [3, 3, 2, 0]


@settings(max_examples=300)
@given(spectra, st.integers(-1000, 980))
def test_no_size_is_too_small_or_too_large(s, power):
    """Against fractions: what float64 can hold is right, although squares and their sums cannot be held."""
    scaled = np.ldexp(s, power)
    assume(np.isfinite(scaled).all() and (np.ldexp(scaled, -power) == s).all())
    exact = sum(Fraction(x) ** 2 for x in scaled.tolist())
    top = Fraction(np.finfo(float).max)
    if exact < top:
        assert metrics.energy(scaled) == pytest.approx(float(exact), rel=1e-14, abs=5e-324)
    if exact < (top / 2) ** 2:
        assert metrics.frobenius_norm(scaled) == pytest.approx(
            metrics.frobenius_norm(s) * 2.0 ** (power // 2) * 2.0 ** (power - power // 2), rel=1e-14, abs=1e-323
        )
    for rank in (metrics.stable_rank, metrics.participation_ratio, metrics.entropy_rank):
        assert rank(scaled) == pytest.approx(rank(s), rel=1e-9)
    assert metrics.energy_rank(scaled, 0.9) == metrics.energy_rank(s, 0.9)


@given(arrays(float, (5, 6), elements=st.floats(0, 1e3)), st.floats(0, 10))
def test_rows_of_many_are_as_each_alone(stack, threshold):
    stack[1], stack[2] = 0, stack[2] * 1e-300
    floors = np.array([0.0, 1.0, np.nan, 1e-3, 1e300])
    many = Stack(stack, floors, stack.sum(axis=1))
    for name, column in metrics.METRICS.items():
        together = column.value(many, np.arange(5), np.full(5, threshold))
        for k, s in enumerate(stack):
            alone = Spectrum(s, "svd", "cpu", "float64", floors[k], reach=s.sum())
            np.testing.assert_array_equal(together[k], column.value(alone, k, threshold), err_msg=name)


def test_shares_outside_0_to_1_are_refused():
    with pytest.raises(ValueError, match=r"1\.5"):
        metrics.energy_rank(np.ones(3), 1.5)


def test_table_columns_call_the_metrics():
    s = np.array([4.0, 2.0, 1.0, 0.001])
    facts = lora(np.ones((9, 4)), np.ones((4, 8))).facts
    row = {name: column.value(s, facts.rank_bound, 0.005) for name, column in metrics.METRICS.items()}
    assert row["effective_rank"] == 3
    assert row["rank_bound"] == 4
    assert row["rank_utilisation"] == 0.75
    assert row["energy_rank_99"] == metrics.energy_rank(s, 0.99)
    assert row["condition"] == pytest.approx(4000)
    assert row["numerical_rank"] == 4
