"""Singular values from a Gram matrix with a mended tail are those of an SVD, or there are none."""

from __future__ import annotations

import mpmath
import numpy as np
import pytest
import scipy.linalg

from bora_analysis import dense, lora, singular_values
from bora_analysis.linalg import solvers, tail

NEVER = lambda values: False  # noqa: E731

N = 200
SPECTRA = {
    "gaussian": None,
    "a few small": np.concatenate([np.linspace(1, 0.2, N - 20), np.geomspace(0.1, 1e-8, 20)]),
    "one tiny": np.concatenate([np.linspace(1, 0.1, N - 1), [1e-10]]),
    "two clusters": np.concatenate([np.ones(120), np.full(80, 1e-5)]),
    "three clusters": np.concatenate([np.ones(120), np.full(40, 1e-3), np.full(40, 1e-7)]),
    "graded below": np.concatenate([np.full(110, 1.0), np.geomspace(0.12, 1e-9, 90)]),
    "just at the cut": np.concatenate([np.ones(120), np.full(80, 1 / 8)]),
    "most below an eighth": np.concatenate(
        [np.linspace(1, 0.13, 70), np.linspace(0.12, 0.02, 90), np.geomspace(0.02, 1e-6, 40)]
    ),
    "most in a cluster": np.concatenate([np.linspace(1, 0.3, 60), np.full(140, 0.1)]),
    "none small": np.linspace(1, 0.5, N),
    "large": 1e30 * np.concatenate([np.linspace(1, 0.2, N - 20), np.geomspace(0.1, 1e-8, 20)]),
}


def matrix(name: str, seed: int = 0, columns: int = N) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = SPECTRA[name]
    if values is None:
        return rng.standard_normal((N, columns))
    U, V = np.linalg.qr(rng.standard_normal((N, N)))[0], np.linalg.qr(rng.standard_normal((columns, N)))[0]
    return (U * values) @ V.T


@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("columns", [N, 330])
@pytest.mark.parametrize("name", SPECTRA)
def test_within_its_bound_of_the_svd(name, columns, recursive, monkeypatch):
    monkeypatch.setattr(tail, "_SMALL", 10 if recursive else 512)
    for seed in range(2):
        C = matrix(name, seed, columns)
        exact = scipy.linalg.svdvals(C, check_finite=False)
        found = tail.from_gram(C, NEVER)
        _, bound = tail._mended(C, NEVER) or (None, None)
        if found is None:
            assert recursive  # a tail of which too much is left to find
            continue
        values, again = found
        assert again
        assert bound is not None
        assert bound <= 5e-13 * exact[0]
        rounding = 4e-15 * exact[0]  # of the SVD itself
        assert np.abs(values - exact).max() <= bound + rounding
        assert np.abs(values - exact).max() <= 2e-14 * exact[0]  # what it is in fact
        assert (np.diff(values) <= 0).all()


@pytest.mark.parametrize("name", SPECTRA)
def test_what_was_rounded_when_it_was_stored_needs_fewer_values_found_again(name, monkeypatch):
    """A hundredth of float32's rounding is let pass, by the bound; what is not 0 is told as such."""
    error = tail.allowed(2.0**-23)
    assert error == 1e-9
    found_again: list[int] = []
    vectors = tail._Tridiagonal.vectors
    monkeypatch.setattr(tail._Tridiagonal, "vectors", lambda own, k: found_again.append(k) or vectors(own, k))
    for seed in range(2):
        C = matrix(name, seed)
        exact = scipy.linalg.svdvals(C, check_finite=False)
        found = tail.from_gram(C, NEVER, error)
        assert found is not None
        _, bound = tail._mended(C, NEVER, error) or (None, None)
        assert bound is not None
        assert bound <= error * exact[0]
        assert 4 * bound <= found[0][-1]
        assert np.abs(found[0] - exact).max() <= bound + 4e-15 * exact[0]
        # Those that lie below four times η / (1e-9 σ₁), η some 5e-15 σ₁² at this size; all of a cluster.
        assert max(found_again, default=0) <= np.sum(exact < 1e-4 * exact[0])


def test_what_could_be_zero_is_left_to_the_svd_in_float32_too():
    C = matrix("none small")
    C[-1] = C[0] + C[1]
    assert tail.from_gram(C, NEVER, tail.allowed(2.0**-23)) is None
    U, V = (np.linalg.qr(np.random.default_rng(seed).standard_normal((N, N)))[0] for seed in (0, 1))
    tiny = np.concatenate([np.ones(N - 1), [1e-12]])  # could be found, but not told from 0 with this error
    found = tail.from_gram((U * tiny) @ V, NEVER, tail.allowed(2.0**-23))
    assert found is None or abs(found[0][-1] - 1e-12) < 2.5e-13


def test_a_plain_gram_matrix_is_far_off_where_the_mended_one_is_right():
    """Against 40 digits: what is mended is what was wrong."""
    rng = np.random.default_rng(1)
    U, V = (np.linalg.qr(rng.standard_normal((16, 16)))[0] for _ in range(2))
    C = (U * np.concatenate([np.linspace(1, 0.3, 12), [1e-2, 1e-5, 1e-9, 1e-10]])) @ V
    with mpmath.workdps(40):
        exact = np.array([float(x) for x in mpmath.svd_r(mpmath.matrix(C.tolist()), compute_uv=False)])
    plain = np.sqrt(np.maximum(np.linalg.eigvalsh(C @ C.T), 0))[::-1]
    found = tail.from_gram(C, NEVER)
    assert found is not None
    assert np.abs(found[0] - exact).max() < 1e-15
    assert np.abs(plain - exact).max() > 1e-10


def test_what_could_be_zero_is_left_to_the_svd():
    C = matrix("none small")
    C[-1] = C[0] + C[1]
    assert tail.from_gram(C, NEVER) is None
    assert tail.from_gram(np.zeros((4, 5)), NEVER) is None


def test_mostly_small_values_are_left_to_the_svd():
    U, V = (np.linalg.qr(np.random.default_rng(seed).standard_normal((N, N)))[0] for seed in (0, 1))
    assert tail.from_gram((U * np.geomspace(1, 1e-9, N)) @ V, NEVER) is None


def test_vectors_that_do_not_converge(monkeypatch):
    """The second driver gives the same; without any there is no answer."""
    real, C = scipy.linalg.eigh_tridiagonal, matrix("a few small")
    expected = tail.from_gram(C, NEVER)
    failing: list[str] = ["stemr"]

    def some(d, e, lapack_driver="auto", **keywords):
        if lapack_driver in failing:
            raise np.linalg.LinAlgError("did not converge")
        return real(d, e, lapack_driver=lapack_driver, **keywords)

    monkeypatch.setattr(scipy.linalg, "eigh_tridiagonal", some)
    found = tail.from_gram(C, NEVER)
    assert found is not None
    assert expected is not None
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=1e-14)
    failing.append("stevd")
    assert tail.from_gram(C, NEVER) is None


def test_auto_mends_large_cores_of_float32(monkeypatch):
    monkeypatch.setattr(solvers, "MEND_ROUNDED_FROM", N)
    rng = np.random.default_rng(0)
    B, A = (rng.standard_normal(shape).astype(np.float32) for shape in ((300, N), (N, 250)))
    B *= np.geomspace(1, 1e-7, N, dtype=np.float32)  # too small for a Gram matrix alone
    update = lora(B, A)
    spectrum, exact = (singular_values(update, solver=solver, device="cpu") for solver in ("auto", "svd"))
    assert (spectrum.solver, exact.solver) == ("gram (mended)", "svd")
    np.testing.assert_allclose(spectrum.values, exact.values, rtol=0, atol=1e-12 * exact.values[0])


def test_auto_mends_large_cores(monkeypatch):
    """Of any dtype; the values are the SVD's, whose they are where a small σ could be 0."""
    for limit in ("MEND_FROM", "MEND_ROUNDED_FROM"):
        monkeypatch.setattr(solvers, limit, N)
    for name in ("gaussian", "a few small", "three clusters"):
        C = matrix(name)
        for shaped in (C, C.T):
            spectrum = singular_values(dense(shaped), device="cpu")
            assert spectrum.solver == "gram (mended)"
            exact = singular_values(dense(shaped), solver="svd", device="cpu")
            np.testing.assert_allclose(spectrum.values, exact.values, rtol=0, atol=2e-14 * exact.values[0])
    assert singular_values(dense(matrix("none small").astype(np.float32)), device="cpu").solver == "gram"
    B = matrix("none small")
    B[-1] = B[0]
    assert singular_values(dense(B), device="cpu").solver == "svd"
    assert singular_values(lora(B, matrix("gaussian")), solver="svd", device="cpu").solver == "svd"
