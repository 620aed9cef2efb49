"""Triangles from Gram matrices are as good as Householder's where they are taken, and are not taken elsewhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import svdvals

from bora_analysis import read_adapter, singular_values
from bora_analysis.linalg import norm, qr
from bora_analysis.updates.blocks import lora

ROOT = Path(__file__).parents[2]
mpmath: Any = pytest.importorskip("mpmath")  # torch brings it


def gram_of(X: np.ndarray) -> tuple[np.ndarray, bool]:
    (R,), (safe,) = qr.from_gram((X.T @ X)[None], len(X))
    return R, bool(safe)


def graded(rng: np.random.Generator, p: int, r: int, condition: float, decades: float) -> np.ndarray:
    """Columns of condition number ``condition``, then scaled over so many powers of ten, in any order."""
    left, right = (np.linalg.qr(rng.standard_normal((size, r))).Q for size in (p, r))
    X = left * np.logspace(0, -np.log10(condition), r) @ right.T
    return X * rng.permutation(np.logspace(0, -decades, r))


@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.sampled_from([(300, 16), (513, 12), (1600, 7), (2048, 32), (700, 64)]),
    log_condition=st.floats(0, 14),
    decades=st.floats(0, 14),
    scale=st.sampled_from([1.0, 1e-60, 1e100]),
)
@settings(max_examples=60, deadline=None)
def test_any_condition_and_grading(seed, sizes, log_condition, decades, scale):
    p, r = sizes
    X = scale * graded(np.random.default_rng(seed), p, r, 10.0**log_condition, decades)
    R = qr.triangle(X)
    assert R.shape == (r, r)
    assert not np.tril(R, -1).any()
    np.testing.assert_allclose(svdvals(R), svdvals(X), rtol=0, atol=2.5e-13 * norm(X))


def exact_singular_values(X: np.ndarray) -> np.ndarray:
    """In 60 digits, from the exact Gram matrix."""
    with mpmath.workdps(60):
        columns = [[mpmath.mpf(float(x)) for x in column] for column in X.T]
        gram = mpmath.matrix([[mpmath.fdot(x, y) for y in columns] for x in columns])
        return np.array([float(mpmath.sqrt(x)) for x in mpmath.eigsy(gram, eigvals_only=True)])[::-1]


@pytest.mark.parametrize("decades", [0, 7, 14])
@pytest.mark.parametrize("condition", [1, 10, 60])
def test_small_singular_values_have_all_their_digits(condition, decades):
    """What Householder's QR does not promise: the least of fourteen orders is right to 1e-11 of itself."""
    X = graded(np.random.default_rng(condition), 600, 4, condition, decades)
    R, safe = gram_of(X)
    assert safe
    with mpmath.workdps(60):
        found = np.array([float(x) for x in mpmath.svd_r(mpmath.matrix(R.tolist()), compute_uv=False)])
    np.testing.assert_allclose(np.sort(found)[::-1], exact_singular_values(X), rtol=1e-11)


def test_rounding_errors_of_one_sign():
    """All entries are positive and alike: sums that only grow."""
    rng = np.random.default_rng(0)
    X = 0.1 + 1e-3 * rng.random((14336, 1))
    X = np.hstack([X, np.where(np.arange(14336)[:, None] % 2, X, -X)])
    expected = exact_singular_values(X)
    np.testing.assert_allclose(svdvals(qr.triangle(X)), expected, rtol=1e-13)


def nearly_dependent() -> np.ndarray:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((600, 8))
    X[:, 3] = X[:, 5] + 1e-9 * X[:, 3]
    return X


@pytest.mark.parametrize(
    "X",
    [
        nearly_dependent(),
        np.hstack([nearly_dependent()[:, :7], np.zeros((600, 1))]),
        np.ones((600, 8)),
        np.zeros((600, 8)),
        np.full((600, 8), 1e200),
        np.eye(600, 8) * 1e-200,
    ],
    ids=["nearly dependent", "zero column", "rank one", "zero", "overflow", "underflow"],
)
def test_what_a_gram_matrix_cannot_tell_is_left_to_householder(X):
    with np.errstate(over="ignore"):
        assert not gram_of(X)[1]
    expected = np.linalg.qr(X, mode="r")
    for stack in (X[None], np.stack([X, np.random.default_rng(1).standard_normal(X.shape)])):
        found = qr.triangles(np.tile(stack, (1, 3, 1)))  # tall enough to be tried
        np.testing.assert_allclose(svdvals(found[0]), svdvals(expected) * np.sqrt(3), rtol=0, atol=1e-13 * norm(X))


@pytest.mark.parametrize("small", [False, True], ids=["syrk", "halves"])
@pytest.mark.parametrize("r", [1, 2, 7, 16, 32, 33])
def test_both_ways_to_a_gram_matrix(monkeypatch: pytest.MonkeyPatch, small: bool, r: int):
    """Each processor takes one of them."""
    monkeypatch.setattr(qr, "_multiplies_small", lambda: small)
    rng = np.random.default_rng(r)
    X = rng.standard_normal((3, 1300, r)).astype(np.float32)
    for stack in (X, np.ascontiguousarray(X.transpose(0, 2, 1)).transpose(0, 2, 1)):
        found, wide = qr._gram([stack]), stack.astype(np.longdouble)
        np.testing.assert_allclose(found, wide.transpose(0, 2, 1) @ wide, rtol=0, atol=1e-13 * 1300)
        if qr.by_gram(stack.shape):
            summed = qr.Summed.of(stack, lambda: X)
            assert summed is not None
            (kept,), (whole,) = qr.triangles_of([summed]), qr.triangles_of([stack])
            np.testing.assert_array_equal(kept, whole)


def test_ranks_stay_what_they_are():
    """A core of rank-deficient factors counts no σ that is not there."""
    rng = np.random.default_rng(0)
    B = rng.standard_normal((2000, 12))
    B[:, 11] = B[:, :11].sum(axis=1)
    values = singular_values(lora(B, rng.standard_normal((12, 3000)))).values
    assert values[10] > 1
    assert values[11] < 1e-10


@pytest.mark.parametrize("sizes", [(16, 8), (8, 16), (1024, 1), (1, 1), (5000, 16), (1100, 300), (2048, 128), (9, 0)])
def test_householder_in_parts_and_in_place(sizes):
    X = np.random.default_rng(0).standard_normal((2, *sizes)).astype(np.float32)
    found = qr._householder(X)
    assert found.shape == (2, min(sizes), sizes[1])
    assert found.dtype == np.float64
    for R, own in zip(found, X.astype(np.float64), strict=True):
        np.testing.assert_allclose(R.T @ R, own.T @ own, rtol=0, atol=1e-13 * norm(own) ** 2)
        assert not np.tril(R, -1).any()


def test_trained_factors_take_the_fast_way():
    safe = []
    for path in sorted((ROOT / "data").glob("trained-lora-r*")):
        adapter: Any = read_adapter(path)
        for update in adapter.values():
            safe += [gram_of(X.astype(np.float64))[1] for X in (update.B[0], update.A[0].T)]
    assert np.mean(safe) > 0.9, f"{len(safe)} factors"


def test_scipy_is_limited_when_it_comes_late():
    """A worker that imports scipy.linalg under the limit must not let its BLAS loose on all cores."""
    code = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from threadpoolctl import threadpool_info
from bora_analysis.linalg import norm, qr
from bora_analysis.linalg.threads import one_blas_thread

def threads():
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}

assert "scipy.linalg" not in sys.modules
before = threads()
with one_blas_thread(), ThreadPoolExecutor(1) as pool:
    pool.submit(qr.triangle, np.ones((600, 200))).result()
    assert "scipy.linalg" in sys.modules
    assert threads() == {1}, threads()
assert threads() == before, (threads(), before)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
