"""Figures of a fleet show the numbers that they are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from figure_cases import cut_texts
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform

from bora_analysis.figures import save
from bora_analysis.figures.fleet import fleet_basis, fleet_growth, fleet_map


def points(values: dict[int, list[float]], method: str = "lora") -> pd.DataFrame:
    rows = [(method, p, float(r), x) for p in ("q", "v") for r, own in values.items() for x in own]
    return pd.DataFrame(rows, columns=["method", "projection", "r", "value"])


LINES = pd.DataFrame(
    [("lora", "q", 4, 64, 0.25, 0.2, 0.3, 1.5), ("lora", "v", 4, 64, 0.1, np.nan, np.nan, 2.0)],
    columns=["method", "projection", "r_min", "r_max", "exponent", "low", "high", "factor"],
)


def lines_of(figure: Any, gid: str) -> list[Any]:
    return [line for axes in figure.axes for line in axes.get_lines() if line.get_gid() == gid]


@pytest.mark.parametrize("width", ["neurips", "icml"])
def test_growth_has_the_points_the_lines_and_their_exponents(width: str, tmp_path: Path) -> None:
    table = points({4: [2.0, 2.2], 16: [3.0], 64: [4.0, 4.5]})
    figure = fleet_growth(table, LINES, width=width)
    (drawn,) = lines_of(figure, "points:q:lora")
    assert sorted(zip(drawn.get_xdata(), drawn.get_ydata(), strict=True)) == [
        (4, 2), (4, 2.2), (16, 3), (64, 4), (64, 4.5),
    ]  # fmt: skip
    fit = lines_of(figure, "fit:lora")[0]
    np.testing.assert_allclose(fit.get_ydata(), 1.5 * np.array([4, 64]) ** 0.25)
    assert [axes.get_title() for axes in figure.axes] == ["q\nLoRA β = 0.25 (0.20, 0.30)", "v\nLoRA β = 0.10"]
    assert cut_texts(figure) == []
    one, two = (save(fleet_growth(table, LINES, width=width), tmp_path / f"{k}.svg").read_bytes() for k in range(2))
    assert one == two
    with pytest.raises(ValueError, match="nothing to draw"):
        fleet_growth(table.head(0), LINES)


@pytest.mark.parametrize("count", [2, 12, 60])
def test_the_map_is_in_the_order_of_its_dendrogram(count: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((count, 5)) + 3 * np.eye(count, 5)[rng.permutation(count)]
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    cosine = x @ x.T
    tree = linkage(squareform(np.clip(1 - cosine, 0, 2), checks=False), "average")
    names = [f"adapter-with-a-long-name-{k}-of-$many$" for k in range(count)]
    figure = fleet_map(cosine, tree, names, title="all")
    order = leaves_list(tree)
    above, below = figure.axes[:2]
    np.testing.assert_array_equal(below.get_images()[0].get_array(), cosine[np.ix_(order, order)])
    assert len([line for line in above.get_lines() if line.get_gid() == "branch"]) == count - 1
    tops = sorted(max(np.asarray(line.get_ydata(), dtype=float)) for line in above.get_lines())
    np.testing.assert_allclose(tops, np.sort(tree[:, 2]))
    labels = [text.get_text() for text in below.get_yticklabels()]
    assert len(labels) == (count if count <= 40 else 0)
    if labels:
        assert labels[0].endswith(f"{order[0]}-of-\\$many\\$")
    assert cut_texts(figure) == []


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got cosines \(1, 1\), 1 names and a linkage of 0 rows; expected"):
        fleet_map(np.eye(1), np.zeros((0, 4)), ["a"])


@pytest.mark.parametrize("width", ["neurips", "icml"])
def test_the_basis_has_median_and_least_of_each_rank(width: str, tmp_path: Path) -> None:
    rows = [
        (rank, share) for rank, own in {1: [0.1, 0.3, 0.4], 2: [0.5, 0.6, 0.9], 3: [1, 1, 1]}.items() for share in own
    ]
    kept = pd.DataFrame(rows, columns=["rank", "kept"])
    figure = fleet_basis(kept, width=width)
    for gid, values in (("median", [30, 60, 100]), ("least", [10, 50, 100])):
        (drawn,) = lines_of(figure, gid)
        assert drawn.get_xdata().tolist() == [1, 2, 3]
        assert drawn.get_ydata() == pytest.approx(values)
    assert figure.axes[0].get_legend().get_title().get_text() == "of 3 adapters"  # pyright: ignore[reportOptionalMemberAccess]
    assert cut_texts(figure) == []
    one, two = (save(fleet_basis(kept, width=width), tmp_path / f"{k}.svg").read_bytes() for k in range(2))
    assert one == two
    with pytest.raises(ValueError, match="nothing to draw"):
        fleet_basis(kept.head(0))
