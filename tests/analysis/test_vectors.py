"""Singular vectors against dense SVD, for every structure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
from cases import STRUCTURES, updates
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_analysis import bora, dense, lora, singular_vectors
from bora_analysis.linalg.threads import in_order


@pytest.mark.parametrize("structure", STRUCTURES)
@given(data=st.data())
@settings(max_examples=40)
def test_they_are_the_svd_of_the_update(structure, data):
    update, exact = data.draw(updates(structure))
    found = singular_vectors(update)
    left, middle, right = update.expanded()
    reach = float(np.linalg.norm(left, 2) * np.linalg.norm(middle, 2) * np.linalg.norm(right, 2))
    k = len(found.values)
    assert found.left.shape == (exact.shape[0], k)
    assert found.right.shape == (k, exact.shape[1])
    np.testing.assert_allclose(found.left.T @ found.left, np.eye(k), atol=1e-12)
    np.testing.assert_allclose(found.right @ found.right.T, np.eye(k), atol=1e-12)
    assert np.linalg.norm((found.left * found.values) @ found.right - exact, 2) <= 1e-12 * reach
    assert (np.diff(found.values) <= 0).all()
    expected: Any = scipy.linalg.svdvals(exact)
    np.testing.assert_allclose(found.values, np.pad(expected, (0, max(0, k - len(expected))))[:k], atol=1e-12 * reach)


def test_an_update_without_structure_and_one_of_other_factors():
    rng = np.random.default_rng(0)
    matrix = rng.standard_normal((7, 5))

    class Other:  # what the package knows of it is the contract alone
        facts = dense(matrix).facts

        def factors(self):
            return matrix[:, :2], matrix[:2]

    for update, exact in ((dense(matrix), matrix), (Other(), matrix[:, :2] @ matrix[:2])):
        found = singular_vectors(update)  # pyright: ignore[reportArgumentType]
        np.testing.assert_allclose((found.left * found.values) @ found.right, exact, atol=1e-13)
        np.testing.assert_allclose(found.values, scipy.linalg.svdvals(exact)[: len(found.values)], atol=1e-13)


def test_a_driver_that_does_not_converge_is_replaced(monkeypatch):
    rng = np.random.default_rng(1)
    update = bora(rng.standard_normal((8, 2)), rng.standard_normal((2, 12)), rng.standard_normal((4, 4, 2)))

    def fails(*_, **__):
        raise np.linalg.LinAlgError("SVD did not converge")

    expected = singular_vectors(update)
    monkeypatch.setattr(np.linalg, "svd", fails)
    found = singular_vectors(update)
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-12)
    np.testing.assert_allclose((found.left * found.values) @ found.right, update.to_dense(), atol=1e-12)


def test_work_ahead_keeps_the_order_and_stops_at_an_error():
    names = [str(k) for k in range(50)]
    assert list(in_order(lambda name: int(name) ** 2, names, workers=3)) == [(name, int(name) ** 2) for name in names]
    begun = []

    def work(name):
        begun.append(name)
        if name == "3":
            raise ValueError(name)
        return lora(np.ones((2, 1)), np.ones((1, 2)))

    with pytest.raises(ValueError, match="3"):
        list(in_order(work, names, workers=2))
    assert len(begun) < 20
