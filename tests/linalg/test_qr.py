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

from bora_analysis import each_spectrum, read_adapter, singular_values
from bora_analysis.linalg import gpu_triangles, norm, qr
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


class TestOnADevice:
    """The GPU's code on torch's CPU device."""

    @pytest.fixture(autouse=True)
    def _place(self, monkeypatch: pytest.MonkeyPatch):
        torch = pytest.importorskip("torch")
        self.sent: list[tuple[int, ...]] = []

        def sent(array: np.ndarray) -> Any:
            self.sent.append(array.shape)
            return from_numpy(array)

        from_numpy = torch.from_numpy
        monkeypatch.setattr(torch, "from_numpy", sent)
        monkeypatch.setattr(qr, "device_for", lambda shape: "cpu:0" if shape[-1] >= 8 else "cpu")
        monkeypatch.setattr(gpu_triangles, "place_of", lambda shape, place: "cpu:0")

    @pytest.mark.parametrize("decades", [0, 9])
    @pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
    def test_the_same_triangles_and_the_factors_are_sent_once(self, dtype: type, decades: float):
        rng = np.random.default_rng(0)
        stacks = [
            np.stack([graded(rng, p, r, 10, decades) for _ in range(b)]) for b, p, r in ((3, 1300, 16), (1, 900, 9))
        ]
        stacks = [stack.astype(dtype) for stack in stacks]
        found = qr.triangles_of([*stacks, stacks[0].transpose(0, 2, 1), stacks[0][:, :, :4]])
        for R, stack in zip(found[:2], stacks, strict=True):
            for own, X in zip(R, stack.astype(np.float64), strict=True):
                assert not np.tril(own, -1).any()
                np.testing.assert_allclose(svdvals(own), svdvals(X), rtol=0, atol=2.5e-13 * norm(X))
        assert self.sent == [stack.shape for stack in stacks]

    @pytest.mark.parametrize("scale", [1.0, 0.0, 1e-160, 1e160, 1e200])
    def test_what_a_gram_matrix_cannot_tell_is_left_to_householder(self, scale: float):
        X = scale * nearly_dependent() + 0.0
        fine = np.random.default_rng(1).standard_normal(X.shape)
        with np.errstate(over="ignore"):
            dependent, whole = qr.triangles(np.tile(np.stack([X, fine]), (1, 3, 1)))
        np.testing.assert_allclose(svdvals(dependent), svdvals(X) * np.sqrt(3), rtol=0, atol=1e-13 * norm(X))
        np.testing.assert_allclose(svdvals(whole), svdvals(fine) * np.sqrt(3), rtol=1e-13)

    def test_too_little_memory(self, monkeypatch: pytest.MonkeyPatch):
        import torch

        def full(*_: Any) -> Any:
            raise torch.OutOfMemoryError

        monkeypatch.setattr(torch.linalg, "cholesky_ex", full)
        X = np.random.default_rng(0).standard_normal((2, 1300, 16))
        np.testing.assert_allclose(qr.triangles(X), qr._by_grams([X])[0])


@pytest.mark.parametrize(
    ("place", "r", "device"),
    [
        ("cpu", 2048, "cpu"),
        ("cuda:1", 64, "cpu"),
        ("cuda:1", 128, "cuda:1"),
        ("auto", 512, "cpu"),
        ("auto", 1024, "cuda:0"),
    ],
)
def test_which_triangles_go_to_a_device(monkeypatch: pytest.MonkeyPatch, place: str, r: int, device: str):
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with gpu_triangles.triangles_at(place):
        assert gpu_triangles.device_for((1, 4096, r)) == device
    assert gpu_triangles.device_for((1, 4096, r)) == "cpu"


def test_workers_reduce_on_the_device_that_was_asked_for(monkeypatch: pytest.MonkeyPatch):
    """Threads do not inherit it."""
    pytest.importorskip("torch")
    seen = set()
    monkeypatch.setattr("bora_analysis.analysis.spectrum.resolve", lambda solver, device: "cpu:0")
    monkeypatch.setattr(gpu_triangles, "place_of", lambda shape, place: seen.add(place) or "cpu:0")
    rng = np.random.default_rng(0)
    many = {str(k): lora(rng.standard_normal((400, 128)), rng.standard_normal((128, 300))) for k in range(3)}
    found = {name: spectrum for name, _, spectrum in each_spectrum(many, workers=2, device="cuda")}
    assert seen == {"cpu:0"}
    monkeypatch.undo()
    for name, update in many.items():
        expected = singular_values(update).values
        np.testing.assert_allclose(found[name].values, expected, rtol=0, atol=1e-12 * expected[0] * 4)


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
