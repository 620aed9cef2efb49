"""The page Compare: differences from the baseline, and the overlap of all pairs beside the library's of each pair."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dashboard_cases import adapter
from matplotlib.collections import QuadMesh
from page_cases import healthy, made, starter

from app import comparing
from bora_analysis import analyse, read_adapter, similarity
from bora_analysis.figures.grids import grid

start = starter("compare")
NAMES = ["one", "two", "three"]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for seed, (name, rank) in enumerate(zip(NAMES, (2, 3, 3), strict=True)):
        adapter(tmp_path / name, seed=seed, rank=rank, layers=2 + (name == "three"))
    return tmp_path


def test_differences_are_those_of_the_tables(start, three):
    app = start(path=NAMES, adapters=NAMES, baseline="two", metric="stable rank")
    layers = app.session_state["_context"].layer_metrics
    found = comparing.differences(layers, "stable_rank", "two")
    tables = {name: analyse(read_adapter(three / name)).layer_metrics.set_index("module") for name in NAMES}
    assert found["adapter"].tolist() == ["one"] * 4 + ["three"] * 4  # the third layer of the last is its own
    rows: Any = found.itertuples()
    for row in rows:
        own, base = (tables[name].loc[row.module, "stable_rank"] for name in (row.adapter, "two"))
        assert row.difference == own - base
    chart = app.get("vega_lite_chart")[0].proto
    assert f"one: {found[found['adapter'] == 'one']['difference'].mean():+.4g}" in chart.alt
    colours = json.loads(chart.spec)["layer"][0]["encoding"]["color"]["scale"]["domain"]
    assert colours[0] == -colours[1] == -found["difference"].abs().max()


@pytest.mark.parametrize("i", [1, 2, 8])
def test_every_pair_is_what_the_library_finds(start, three, i):
    app = start(path=NAMES, adapters=NAMES, similarity_i=str(i))
    pairs = made(app, "similarity")
    for side in ("left", "right"):
        found = comparing.matrix(pairs, NAMES, side).set_index(["adapter_a", "adapter_b"])
        assert len(found) == 6
        for one, two in combinations(NAMES, 2):
            table = similarity(three / one, three / two, i=i, j=i).table
            for pair in ((one, two), (two, one)):
                row: Any = found.loc[pair]
                np.testing.assert_allclose(row["phi"], table[f"phi_{side}"].mean(), rtol=1e-9)
                np.testing.assert_allclose(row["random"], table[f"random_{side}"].mean(), rtol=1e-12)
                np.testing.assert_allclose(row["above_chance"], row["phi"] - row["random"], atol=1e-12)
                assert row["modules"] == 4
    assert healthy(app.run()).get("vega_lite_chart")[1].proto.alt.startswith(f"Overlap of the top {i} directions")


def test_pairs_of_two_base_models_are_left_out(start, three):
    for name in ("one", "two"):
        file = three / name / "adapter_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": f"org/{name}"}))
    pairs = made(start(path=NAMES, adapters=NAMES), "similarity")
    assert set(zip(pairs["adapter_a"], pairs["adapter_b"], strict=True)) == {("one", "three"), ("two", "three")}
    app = start(path=["one", "two"], adapters=["one", "two"])
    made(app, "similarity")
    assert any("No two of these adapters" in info.value for info in healthy(app.run()).info)


def test_names_of_rows_tell_modules_apart():
    table = pd.DataFrame({"module": ["h.0.q", "h.1.q"], "layer": [0, 1], "projection": ["q", "q"]})
    assert comparing.with_rows(table)["row"].tolist() == ["layer 0 q", "layer 1 q"]
    assert comparing.with_rows(table.assign(layer=0))["row"].tolist() == ["h.0.q", "h.1.q"]


def test_one_adapter_is_beside_none(start, three):
    app = start(path="one", adapters="one")
    assert ["two adapters or more" in info.value for info in app.info] == [True]


def test_the_figure_has_the_numbers_in_their_cells():
    table = pd.DataFrame({"a": ["x", "y", "y"], "b": ["p", "p", "q"], "value": [1.0, -2.0, 0.5]})
    figure = grid(table, across="a", down="b", value="value", label="v", centred=True)
    (mesh,) = [each for each in figure.axes[0].collections if isinstance(each, QuadMesh)]
    cells = np.ma.filled(np.ma.asarray(mesh.get_array(), float), np.nan).reshape(2, 2)
    np.testing.assert_array_equal(cells, [[1.0, -2.0], [np.nan, 0.5]])
    assert (mesh.norm.vmin, mesh.norm.vmax) == (-2.0, 2.0)
    with pytest.raises(ValueError, match="no rows"):
        grid(table.head(0), across="a", down="b", value="value", label="v")
