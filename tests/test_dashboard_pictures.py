"""The images of ΔW against its dense matrix."""

from __future__ import annotations

import numpy as np
import pictures
import pytest

from bora_analysis import bora, lora, melora


def update(kind, m, n):
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((m, 3)), rng.standard_normal((3, n))
    if kind == "lora":
        return lora(B, A, scaling=2.0)
    if kind == "bora":
        return bora(B, A, rng.standard_normal((4, 4, 3)))
    return melora([B[: m // 2], B[m // 2 :]], [A[:, : n // 4], A[:, n // 4 :]])


@pytest.mark.parametrize("kind", ["lora", "bora", "melora"])
@pytest.mark.parametrize(("m", "n"), [(40, 24), (512, 5000), (1000, 300)])
def test_a_cell_is_the_mean_of_its_entries(kind, m, n):
    delta = update(kind, m, n)
    found = pictures.magnitude(delta, cells=64)
    rows, columns = (pictures._edges(edge, delta.facts.blocks, 64) for edge in (m, n))
    sums = np.add.reduceat(np.add.reduceat(np.abs(delta.to_dense()), rows[:-1], 0), columns[:-1], 1)
    means = sums / (np.diff(rows)[:, None] * np.diff(columns))
    np.testing.assert_allclose(found.image, means, rtol=1e-5, atol=1e-6)  # float32
    assert found.every == 1


@pytest.mark.parametrize("kind", ["lora", "bora"])
def test_of_a_large_one_some_rows_of_each_cell(kind, monkeypatch):
    monkeypatch.setattr(pictures, "ENTRIES", 256 * 128 // 3)
    delta = update(kind, 256, 128)
    found = pictures.magnitude(delta, cells=64)
    assert found.every == 4  # a third of the entries is just not enough
    rows, columns = (pictures._edges(edge, delta.facts.blocks, 64) for edge in (256, 128))
    dense = np.abs(delta.to_dense())
    for i, (top, bottom) in enumerate(zip(rows, rows[1:], strict=False)):
        for j, (left, right) in enumerate(zip(columns, columns[1:], strict=False)):
            assert found.image[i, j] == pytest.approx(
                dense[top : bottom : found.every, left:right].mean(), rel=1e-5, abs=1e-6
            )
