"""A value for each pair of two names, as coloured cells: differences of adapters, similarities of all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from .. import style
from . import drawing as layout
from . import heat, page


@page.in_style
def grid(
    table: Any,
    *,
    across: str,
    down: str,
    value: str,
    label: str,
    centred: bool = False,
    width: str = "neurips",
    title: str | None = None,
) -> Figure:
    """Cells in the order of the table, columns of the same names in that of the rows; a missing pair is hatched.

    Parameters
    ----------
    table : the columns ``across``, ``down`` (names) and ``value``, one row per pair.
    label : of the colours.
    centred : blue below 0 and red above, as for a difference.
    width, title : see :mod:`bora_analysis.figures`.

    Raises
    ------
    ValueError
        A table without rows.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"a": ["x", "y"], "b": ["y", "x"], "phi": [0.5, 0.5]})
    >>> grid(table, across="a", down="b", value="phi", label="φ").axes[0].get_xticklabels()[0].get_text()
    'y'
    """
    if table.empty:
        raise ValueError("nothing to draw: the table has no rows")
    columns, rows = list(dict.fromkeys(table[across])), list(dict.fromkeys(table[down]))
    columns = rows if set(columns) == set(rows) else columns
    cells = np.full((len(rows), len(columns)), np.nan)
    for i, j, number in zip(table[down].map(rows.index), table[across].map(columns.index), table[value], strict=True):
        cells[i, j] = number
    most = float(np.nanmax(np.abs(cells))) or 1.0
    norm = Normalize(-most, most) if centred else Normalize(min(0.0, float(np.nanmin(cells))), most)
    names = style.shortened([layout.plain(str(name)) for name in columns], 24)
    tall = min(0.18, 7.5 / len(rows))
    figure = page.blank(width, max(1.6, tall * len(rows) + 0.9))
    axes = figure.subplots()
    mesh = heat.heat_cells(axes, cells, norm, 0.0, None)
    if centred:
        mesh.set_cmap("RdBu_r")
    every = max(1, int(np.ceil(0.11 / tall)))
    shown = style.shortened([layout.plain(str(name)) for name in rows], 28)
    axes.set_yticks(range(0, len(rows), every), [layout.escaped(name) for name in shown[::every]])
    axes.set_xticks(range(len(columns)), [layout.escaped(name) for name in names], rotation=20, ha="right")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    layout.colour_bar(figure, ScalarMappable(norm, "RdBu_r" if centred else "viridis"), [axes], label, 1.0, 20)
    return layout.finish(figure, title, [])
