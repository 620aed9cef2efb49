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
def test_a_cell_is_the_mean_of_its_entries(kind, m, n):
    delta = update(kind, m, n)
    found = pictures.magnitude(delta, cells=64)
    rows, columns = (pictures._edges(edge, delta.facts.blocks, 64) for edge in (m, n))
    sums = np.add.reduceat(np.add.reduceat(np.abs(delta.to_dense()), rows[:-1], 0), columns[:-1], 1)
    means = sums / (np.diff(rows)[:, None] * np.diff(columns))
    np.testing.assert_allclose(found.image, means, rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("count", [2, 6, 24])
def test_a_long_legend_leaves_the_plot_its_room(count):
    """Its rows are added to the chart's height, of which they once took all."""
    names = [f"adapter-{k:02}" for k in range(count)]
    table = pd.DataFrame({"adapter": names, "method": "lora", "layer": 0, "modules": 1, "rank_bound": 8, "energy": 1.0})
    chart = charts.over_layers(table, "energy", looks_of(table))
    rows = -(-count // 2)  # two such names stand beside each other in half of a page
    assert 340 <= chart.spec["height"] <= 340 + 20 * (rows - 1)
