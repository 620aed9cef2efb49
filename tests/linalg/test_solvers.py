"""Every decomposition has sturdier drivers behind it, and one place that knows them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import scipy.sparse.linalg

from bora_analysis import factor_ranks, lora, read_adapter, singular_values, singular_vectors
from bora_analysis.analysis import relative
from bora_analysis.analysis.relative import intruder_dimensions
from bora_analysis.linalg import inertia, solvers
from bora_analysis.updates.dense import dense

ROOT = Path(__file__).parents[2]


def rank_deficient() -> np.ndarray:
    """A ΔW on which gesdd with vectors does not converge with some versions of OpenBLAS."""
    return read_adapter(ROOT / "data/trained-bora-r8-b16")["layer.1.attention.self.query"].to_dense()


def test_a_rank_deficient_update_is_decomposed_by_whatever_driver():
    delta = rank_deficient()
    expected = scipy.linalg.svdvals(delta)
    U, values, V = solvers.svd_with_vectors(delta)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-13 * expected[0])
    np.testing.assert_allclose(U * values @ V, delta, rtol=0, atol=1e-13 * expected[0])
    found = singular_vectors(dense(delta))
    np.testing.assert_allclose(found.left * found.values @ found.right, delta, rtol=0, atol=1e-13 * expected[0])
    assert 0 <= intruder_dimensions(dense(delta), np.eye(384)) <= 10


@pytest.mark.parametrize("worse", [(), ("gesvd",)], ids=["gesdd fails", "gesdd and gesvd fail"])
def test_drivers_that_do_not_converge(monkeypatch, worse):
    """NumPy's driver fails, and those of scipy that are named: the numbers stay right, the result names the driver."""
    real = scipy.linalg.svd

    def never(*arguments, **keywords):
        raise np.linalg.LinAlgError("did not converge")

    def some(matrix, lapack_driver="gesdd", **keywords):
        return never() if lapack_driver in worse else real(matrix, lapack_driver=lapack_driver, **keywords)

    rng = np.random.default_rng(0)
    stack = rng.standard_normal((3, 7, 5))
    expected = np.linalg.svd(stack, compute_uv=False)
    update = read_adapter(ROOT / "data/trained-bora-r8-b8")["layer.0.attention.self.query"]
    ranks = factor_ranks(update)
    monkeypatch.setattr(np.linalg, "svd", never)
    monkeypatch.setattr(scipy.linalg, "svd", some)
    name = "svd (transpose)" if worse else "svd (gesvd)"
    values, used = solvers.svd_values(stack)
    assert used == name
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    for core in (stack[0], stack[0].T):
        U, own, V = solvers.svd_with_vectors(core)
        np.testing.assert_allclose(U * own @ V, core, atol=1e-13)
        np.testing.assert_allclose(U.T @ U, np.eye(5), atol=1e-13)
    assert singular_values(update, solver="svd", device="cpu").solver == name
    assert factor_ranks(update) == ranks


def test_nobody_else_decomposes():
    for folder in ("bora_analysis", "app"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.name != "solvers.py":
                text = path.read_text(encoding="utf-8")
                assert not re.search(r"linalg\.svd\(|import .*\b(svd|svdvals|orth|subspace_angles)\b", text), (
                    f"{path}: use linalg.solvers"
                )


def test_iterations_that_do_not_converge(monkeypatch):
    """ARPACK, and the eigenvalues of a Gram matrix: the dense way then gives the same."""
    rng = np.random.default_rng(0)
    W0, update = rng.standard_normal((600, 520)), lora(rng.standard_normal((600, 2)), rng.standard_normal((2, 520)))
    stack = rng.standard_normal((1, 30, 20))
    expected = intruder_dimensions(update, W0), inertia.spectral_norm(W0), solvers.svd_values(stack)[0]

    def never(*arguments, **keywords):
        raise scipy.sparse.linalg.ArpackNoConvergence("%s", [], []) if keywords else np.linalg.LinAlgError

    monkeypatch.setattr(scipy.sparse.linalg, "eigsh", never)
    monkeypatch.setattr(relative, "svds", never)
    monkeypatch.setattr(solvers, "eigenvalues", never)
    assert intruder_dimensions(update, W0) == expected[0]
    assert inertia.spectral_norm(W0) == pytest.approx(expected[1], rel=1e-9)
    solved = solvers.solve(stack, "float32", "gram", "cpu")
    assert solved.solver == "svd"
    np.testing.assert_array_equal(solved.values, expected[2])
