"""The structures of the other methods against their definitions and the dense SVD."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import scipy.linalg
from cases import FAMILY, family_updates
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_analysis import FactorError, lora, singular_values
from bora_analysis.linalg.qr import triangle
from bora_analysis.updates import hadamard
from bora_analysis.updates.blocks import diagonal
from bora_analysis.updates.circulant import c3a
from bora_analysis.updates.hadamard import loha
from bora_analysis.updates.kronecker import lokr
from bora_analysis.updates.sparse import fourierft, shira
from bora_analysis.updates.sums import combine


@pytest.mark.parametrize("structure", FAMILY)
@settings(max_examples=100)
@given(data=st.data())
def test_dense_factors_and_spectrum_agree_with_the_definition(structure, data):
    update, dense = data.draw(family_updates(structure))
    m, n = update.facts.out_features, update.facts.in_features
    # What rounding is relative to: the size of the factors, which cancellation may make larger than that of ΔW.
    left, right = update.factors()
    size = float(max(np.linalg.norm(dense), np.linalg.norm(left) * np.linalg.norm(right)))
    assert dense.shape == (m, n)
    np.testing.assert_allclose(update.to_dense(), dense, rtol=0, atol=1e-12 * size)
    np.testing.assert_allclose(left @ right, dense, rtol=0, atol=1e-12 * size)
    assert left.shape[1] == right.shape[0] <= min(m, n)
    assert left.dtype == right.dtype == np.float64
    expected, bound = scipy.linalg.svdvals(dense), update.facts.rank_bound
    found = singular_values(update, solver="svd").values
    assert found.shape == (bound,)
    np.testing.assert_allclose(found, expected[:bound], rtol=0, atol=1e-12 * size)
    assert np.abs(expected[bound:]).max(initial=0) <= 1e-12 * size  # what is left out is zero


def test_cores_are_as_small_as_promised():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((400, 3)), rng.standard_normal((3, 300))
    assert [core.shape for core in loha(a, b, a, b).cores()] == [(1, 9, 9)]
    kronecker = lokr(rng.standard_normal((4, 5)), (a, b))
    assert [core.shape for core in kronecker.cores()] == [(12, 1, 1)]
    assert kronecker.factors()[0].shape == (1600, 12)
    assert [core.shape for core in c3a(rng.standard_normal((2, 3, 8))).cores()] == [(2, 2, 3), (3, 4, 6)]
    places = rng.choice(400 * 300, 60, replace=False)
    sparse = fourierft(rng.standard_normal(60), places // 300, places % 300, (400, 300))
    assert max(core.shape[1] for core in sparse.cores()) < 20
    assert [core.shape for core in combine([lora(a, b), lora(a, b)], [1, -1]).cores()] == [(1, 6, 6)]


@pytest.mark.parametrize("coherent", [False, True])
@pytest.mark.parametrize("decay", [1.0, 1e-3])
def test_loha_is_exact_whatever_the_condition(monkeypatch, coherent, decay):
    """By Cholesky where that is accurate, by QR where few rows are not zero, so that the Gram matrix is singular."""

    rng = np.random.default_rng(1)
    m, n, r = 300, 200, 4
    factors = [rng.standard_normal((size, r)) * decay ** np.arange(r) for size in (m, n, m, n)]
    if coherent:
        for X in factors:
            X[6:] = 0
    calls = []
    monkeypatch.setattr(hadamard, "triangle", lambda X: calls.append(X) or triangle(X))
    w1a, w1b, w2a, w2b = factors
    found = singular_values(loha(w1a, w1b.T, w2a, w2b.T), solver="svd").values
    expected = scipy.linalg.svdvals((w1a @ w1b.T) * (w2a @ w2b.T))[: r * r]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13 * expected[0])
    assert bool(calls) == coherent


def test_facts():
    a, b = np.ones((6, 2), np.float16), np.ones((2, 5), np.float32)
    facts = loha(a, b, a, b, scaling=0.5).facts
    assert (facts.parameters, facts.rank_bound, facts.r, facts.scaling) == (44, 4, 2, 0.5)
    assert facts.dtype == "float16"
    whole = lokr(np.ones((2, 3), np.float32), np.ones((4, 5), np.float32)).facts
    assert (whole.method, whole.out_features, whole.in_features, whole.parameters) == ("krona", 8, 15, 26)
    assert (whole.rank_bound, whole.dtype, whole.macs_per_token) == (8, "float32", 3 * 20 + 6 * 4)
    assert lokr((np.ones((2, 1)), np.ones((1, 3))), np.ones((4, 5))).facts.method == "lokr"
    sparse = shira([1.0, 2.0, 3.0], [0, 0, 4], [1, 2, 2], (9, 7)).facts
    assert (sparse.support_rows, sparse.support_columns, sparse.rank_bound) == (2, 2, 2)
    total = combine([lora(a, b, scaling=2), lora(a, b, scaling=3)]).facts
    assert (total.rank_bound, total.r, total.parameters, total.scaling) == (4, 4, 44, 1.0)


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda a, b: diagonal(a, np.ones(3), b, method="vera"), ["d", "(3,)", "(2,)"]),
        (lambda a, b: loha(a, b, a, b[:1]), ["w2_b", "(1, 5)", "(2, 5)"]),
        (lambda a, b: loha(a, b, a[:3], b), ["w2_a", "(3, 2)", "(6, 2)"]),
        (lambda a, b: lokr(a * np.nan, b), ["w", "NaN"]),
        (lambda a, b: lokr(a, (a, a)), ["(6, 2)"]),
        (lambda a, b: c3a(a), ["kernel", "3 dimensions"]),
        (lambda a, b: fourierft([1.0], [6], [0], (6, 5)), ["row 6", "6 × 5"]),
        (lambda a, b: fourierft([1.0, 2.0], [3, 3], [1, 1], (6, 5)), ["two numbers for one place"]),
        (lambda a, b: shira([1.0, 2.0], [3], [1], (6, 5)), ["2 numbers", "1 rows"]),
    ],
)
def test_errors_carry_the_sizes(make, parts):
    with pytest.raises(FactorError) as caught:
        make(np.ones((6, 2)), np.ones((2, 5)))
    assert all(part in str(caught.value) for part in parts), caught.value


def test_sums_of_other_shapes_are_refused():
    one, other = lora(np.ones((3, 1)), np.ones((1, 2))), lora(np.ones((2, 1)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="3×2, 2×2"):
        combine([one, other])
    conv = dataclasses.replace(one, facts=dataclasses.replace(one.facts, kind="conv", kernel=(2, 1)))
    with pytest.raises(ValueError, match=r"3×2, 3×2 \(conv 2×1\)"):
        combine([one, conv])
    with pytest.raises(ValueError, match="2 weights"):
        combine([one], [1.0, 2.0])
    facts = combine([conv, conv]).facts
    assert (facts.kind, facts.kernel) == ("conv", (2, 1))
