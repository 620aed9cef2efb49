"""Subspace similarity and principal angles against dense SVD, and the random baseline by experiment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_analysis import Adapter, AdapterError, dense, lora, principal_angles, similarity, subspace_similarity
from bora_analysis.adapters.synthetic import synthetic_adapter
from bora_analysis.analysis.subspaces import GRID_COLUMNS, SIDES, random_similarity
from bora_analysis.linalg.threads import one_blas_thread

SHAPES = {f"layers.{k}.{p}_proj": (48, 32) for k in range(2) for p in "qv"}
METHODS = {"lora": (4, 1), "melora": (2, 4), "bora": (2, 4)}


def oracle(update, k):
    """Top k left and right singular vectors of the dense matrix, as columns."""
    U, _, V = scipy.linalg.svd(update.to_dense())
    return {"left": U[:, :k], "right": V[:k].T}


@pytest.mark.parametrize("first", METHODS)
@pytest.mark.parametrize("second", METHODS)
def test_phi_and_angles_are_those_of_the_dense_svd(first, second):
    module = "layers.0.q_proj"
    one, two = (
        synthetic_adapter(name, {module: (48, 32)}, *METHODS[name], seed=seed)[module]
        for name, seed in ((first, 0), (second, 5))
    )
    a, b = (oracle(update, update.facts.rank_bound) for update in (one, two))
    for side in SIDES:
        found = subspace_similarity(one, two, side)
        assert found.shape == (one.facts.rank_bound, two.facts.rank_bound)
        for (i, j), value in np.ndenumerate(found):
            overlap = a[side][:, : i + 1].T @ b[side][:, : j + 1]
            assert value == pytest.approx(np.linalg.norm(overlap) ** 2 / min(i + 1, j + 1), abs=1e-10)
        for i, j in ((1, 1), (3, 4), found.shape):
            angles = principal_angles(one, two, i, j, side)
            assert (np.diff(angles) >= 0).all()
            np.testing.assert_allclose(
                np.sort(angles), np.sort(scipy.linalg.subspace_angles(a[side][:, :i], b[side][:, :j])), atol=1e-8
            )
            assert np.mean(np.cos(angles) ** 2) == pytest.approx(found[i - 1, j - 1], abs=1e-10)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=15)
def test_bounds_symmetry_and_itself(seed, r, s):
    rng = np.random.default_rng(seed)
    one = lora(rng.standard_normal((9, r)), rng.standard_normal((r, 7)))
    two = lora(rng.standard_normal((9, s)), rng.standard_normal((s, 7)))
    for side in SIDES:
        phi = subspace_similarity(one, two, side)
        assert phi.min() >= 0
        assert phi.max() <= 1 + 1e-12
        np.testing.assert_allclose(phi, subspace_similarity(two, one, side).T, atol=1e-12)
        own = subspace_similarity(one, one, side)
        np.testing.assert_allclose(own, np.ones_like(own), atol=1e-12)  # nested subspaces
        # A rotation within the factors, a scaling, another dtype: the subspaces stay.
        scaled = lora(one.B[0] * 3, one.A[0] / 2)
        np.testing.assert_allclose(subspace_similarity(scaled, two, side), phi, atol=1e-10)


def test_chance_is_max_over_d():
    """The mean over random subspaces is within five standard errors of max(i, j)/d."""
    rng, d, i, j = np.random.default_rng(0), 40, 3, 7
    found = []
    with one_blas_thread():  # once, for speed
        for _ in range(300):
            one = lora(rng.standard_normal((d, i)), rng.standard_normal((i, d)))
            two = lora(rng.standard_normal((d, j)), rng.standard_normal((j, d)))
            found.append(subspace_similarity(one, two, "left")[-1, -1])
    assert abs(np.mean(found) - random_similarity(i, j, d)) < 5 * np.std(found) / np.sqrt(len(found))
    assert random_similarity(i, j, d) == 7 / 40


def test_directions_that_are_stored_count_whatever_the_dtype_and_rounding_does_not():
    B = np.eye(6)[:, :3] * [1.0, 0.5, 1e-9]
    assert subspace_similarity(lora(B, np.eye(3, 6)), lora(B, np.eye(3, 6))).shape == (3, 3)
    coarse, one = lora(B, np.eye(3, 6), dtype="float8_e5m2"), lora(np.eye(6)[:, :1], np.eye(1, 6))
    assert subspace_similarity(coarse, one).shape == (3, 1)
    assert subspace_similarity(coarse + one * 1e12 - one * 1e12, one).shape == (2, 1)  # 1e-9 is below 1e12 ε


def test_tables_of_two_adapters():
    one = synthetic_adapter("bora", SHAPES, 2, 4, name="one")
    two = synthetic_adapter("lora", {**SHAPES, "layers.9.q_proj": (48, 32)}, 4, seed=3, name="two")
    grid, summary = similarity(one, two, i=3, j=8)
    assert tuple(grid.columns) == GRID_COLUMNS
    assert len(grid) == 2 * len(SHAPES) * 3 * 4  # two's rank is 4
    assert summary["module"].tolist() == list(one)
    assert set(zip(summary["i"], summary["j"], strict=True)) == {(3, 4)}
    rows: Any = summary.itertuples()
    for row in rows:
        for side, d in zip(SIDES, (48, 32), strict=True):
            phi = subspace_similarity(one[row.module], two[row.module], side)[2, 3]
            assert getattr(row, f"phi_{side}") == pytest.approx(phi, abs=1e-12)
            assert getattr(row, f"random_{side}") == 4 / d
            angle = principal_angles(one[row.module], two[row.module], 3, 4, side)[0]
            assert getattr(row, f"angle_{side}") == pytest.approx(np.rad2deg(angle), abs=1e-6)
            mine = grid[(grid["module"] == row.module) & (grid["side"] == side)]
            np.testing.assert_allclose(
                mine.pivot(index="i", columns="j", values="phi"),
                subspace_similarity(one[row.module], two[row.module], side)[:3],
            )
            assert (mine["random"] == mine[["i", "j"]].max(axis=1) / d).all()


def test_a_zero_update_has_no_directions():
    one = synthetic_adapter("lora", SHAPES, 4)
    fresh = synthetic_adapter("lora", SHAPES, 4, kind="init")
    grid, summary = similarity(one, fresh)
    assert grid.empty
    assert tuple(grid.columns) == GRID_COLUMNS
    assert summary["phi_left"].isna().all()
    assert summary["j"].tolist() == [0] * 4


def test_what_cannot_be_compared():
    one, two = (Adapter.from_updates(str(n), {"q": dense(np.eye(n))}) for n in (3, 4))
    with pytest.raises(AdapterError, match="3 and 4: q: the updates are 3×3 and 4×4"):
        similarity(one, two)
    with pytest.raises(AdapterError, match="no module in common"):
        similarity(one, Adapter.from_updates("other", {"v": dense(np.eye(3))}))
    with pytest.raises(ValueError, match="at least 1"):
        similarity(one, one, i=0)
    with pytest.raises(ValueError, match="left or right"):
        subspace_similarity(one["q"], one["q"], "top")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="j is 4; expected 1 to 3"):
        principal_angles(one["q"], one["q"], 1, 4)
