"""The images of ΔW against its dense matrix, and how charts are laid out."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from app import charts, pictures
from bora_analysis import bora, lora, melora
from bora_analysis.analysis.views import looks_of


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
@pytest.mark.parametrize("gram", [0, 64])  # by strips of ΔW, and by the products of its factors
def test_a_cell_is_the_root_mean_square_of_its_entries(monkeypatch, kind, m, n, gram):
    monkeypatch.setattr(pictures, "GRAM", gram)
    delta = update(kind, m, n)
    dense = delta.to_dense()
    found = pictures.magnitude(delta, cells=64)
    rows, columns = (pictures._edges(edge, delta.facts.blocks, 64) for edge in (m, n))
    sums = np.add.reduceat(np.add.reduceat(dense**2, rows[:-1], 0), columns[:-1], 1)
    sizes = np.diff(rows)[:, None] * np.diff(columns)
    np.testing.assert_allclose(found.image, np.sqrt(sums / sizes), rtol=1e-5, atol=1e-6)  # float32
    assert (found.image[sums == 0] == 0).all()
    np.testing.assert_allclose((found.image.astype(float) ** 2 * sizes).sum(), np.sum(dense**2), rtol=1e-6)


@pytest.mark.parametrize("gram", [0, 64])
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_squares_do_not_leave_the_range_of_their_type(monkeypatch, gram, scale):
    monkeypatch.setattr(pictures, "GRAM", gram)
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((512, 4)), rng.standard_normal((4, 600))
    one, other = (pictures.magnitude(lora(scale * B, A / times)).image for times in (1.0, scale))
    np.testing.assert_allclose(one, scale * other, rtol=1e-5)


def test_a_row_of_zeros_is_one_in_the_picture():
    """As SBoRA has them: nothing of the cells beside it comes in."""
    B = np.zeros((512, 4))
    B[[3, 77, 300, 511], range(4)] = 1.0
    found = pictures.magnitude(lora(B, np.ones((4, 300))), cells=64).image
    assert (found.any(axis=1) == np.isin(np.arange(64), [0, 9, 37, 63])).all()


def test_the_middle_factor_is_a_root_mean_square_where_it_is_large(monkeypatch):
    monkeypatch.setattr(pictures, "CELLS", 3)  # twice as many along Σ' of 12 × 12
    delta = update("bora", 40, 24)
    sigma = delta.expanded().sigma
    expected = np.sqrt((sigma**2).reshape(6, 2, 6, 2).mean(axis=(1, 3)))
    np.testing.assert_allclose(pictures.middle(delta).image, expected, rtol=1e-6)


@pytest.mark.parametrize("count", [2, 6, 24])
def test_a_long_legend_leaves_the_plot_its_room(count):
    """Its rows are added to the chart's height, of which they once took all."""
    names = [f"adapter-{k:02}" for k in range(count)]
    table = pd.DataFrame({"adapter": names, "method": "lora", "layer": 0, "modules": 1, "rank_bound": 8, "energy": 1.0})
    chart = charts.over_layers(table, "energy", looks_of(table))
    rows = -(-count // 2)  # two such names stand beside each other in half of a page
    assert 340 <= chart.spec["height"] <= 340 + 20 * (rows - 1)
