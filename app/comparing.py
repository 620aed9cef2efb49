"""What the page Compare shows: differences from a baseline, and how much the subspaces of all pairs overlap."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from app import sources, vega
from app.bounded import bounded
from app.columns import heading
from app.inspection import adapter_of
from app.jobs import Told
from app.sources import Source
from bora_analysis.adapters import Adapter, AdapterError
from bora_analysis.analysis.subspaces import SIDES, bases, random_similarity
from bora_analysis.files.keys import natural
from bora_analysis.linalg import NotFiniteError
from bora_analysis.linalg.threads import one_blas_thread
from bora_analysis.style import shortened

#: Rows beyond this are dropped, the least recently used first.
PAIR_BYTES = 16 << 20
#: Adapters of one matrix, at most.
MOST = 24
#: One side of a pair in one module: adapter_a, adapter_b, module, side, i, j, phi, random.
PAIR_COLUMNS = ("adapter_a", "adapter_b", "module", "side", "i", "j", "phi", "random")


def differences(layers: pd.DataFrame, metric: str, baseline: str) -> pd.DataFrame:
    """Each adapter's metric less the baseline's, in the modules that both have.

    Returns
    -------
    adapter, module, layer, projection, the metric, baseline, difference; without the baseline itself.
    """
    own = layers.loc[layers["adapter"] == baseline].set_index("module")[metric]
    others: pd.DataFrame = layers.loc[(layers["adapter"] != baseline) & layers["module"].isin(own.index)]
    found = others[["adapter", "module", "layer", "projection", metric]].reset_index(drop=True)
    before = found["module"].map(own)
    return found.assign(baseline=before, difference=found[metric] - before)


def with_rows(table: pd.DataFrame) -> pd.DataFrame:
    """With ``row``, a module's name where there is little room: layer and projection, if they tell it apart."""
    modules: Any = table.drop_duplicates("module")
    places = zip(modules["layer"], modules["projection"], strict=True)
    names = [f"layer {layer} {projection}" for layer, projection in places]
    if modules["layer"].isna().any() or len(set(names)) < len(names):
        names = shortened(modules["module"], 24)
    return table.assign(row=table["module"].map(dict(zip(modules["module"], names, strict=True))))


def overlaps(chosen: Sequence[tuple[Source, int | None]], i: int, told: Told) -> pd.DataFrame:
    """φ(i, i) of all pairs in all common modules, as rows of :data:`PAIR_COLUMNS`; what is found stays.

    An adapter of lower rank has fewer directions. Pairs of two base models are left out, as on the command line.
    """
    adapters = []
    for source, step in chosen:
        sources.check(source)
        adapters.append((source, sources.shielded(source, adapter_of)(source, step)))
    modules = sorted({module for _, adapter in adapters for module in adapter}, key=natural)
    rows: list[tuple[object, ...]] = []
    for done, module in enumerate(modules):
        told(done, len(modules))
        rows += _pairs(tuple((source, adapter) for source, adapter in adapters if module in adapter), module, i)
    told(len(modules), len(modules))
    return pd.DataFrame(rows, columns=list(PAIR_COLUMNS))


def matrix(pairs: pd.DataFrame, names: Sequence[str], side: str) -> pd.DataFrame:
    """Means over the modules: adapter_a, adapter_b, modules, phi, random and their difference, both ways round."""
    mine = pairs[pairs["side"] == side]
    means = mine.groupby(["adapter_a", "adapter_b"], sort=False)
    counted = {"modules": ("module", "size"), "phi": ("phi", "mean"), "random": ("random", "mean")}
    found: pd.DataFrame = means.agg(**counted).reset_index()
    found = found.assign(above_chance=found["phi"] - found["random"])
    turned = found.rename(columns={"adapter_a": "adapter_b", "adapter_b": "adapter_a"})
    both = pd.concat([found, turned], ignore_index=True)
    place = {name: k for k, name in enumerate(names)}
    order = both["adapter_a"].map(place) * len(place) + both["adapter_b"].map(place)
    return both.loc[np.argsort(order.to_numpy(), kind="stable"), list(found.columns)].reset_index(drop=True)


def grid(table: pd.DataFrame, across: str, down: str, value: str, title: str, centred: bool, tall: int) -> vega.Chart:
    """A cell for each row of a table; the colours of a difference begin on both sides of 0."""
    columns, rows = list(dict.fromkeys(table[across])), list(dict.fromkeys(table[down]))
    columns = rows if set(columns) == set(rows) else columns
    most = float(table[value].abs().max()) or 1.0
    scale = {"scheme": "redblue", "domain": [-most, most], "reverse": True}
    if not centred:
        scale = {"scheme": "viridis", "domain": [min(0.0, float(table[value].min())), most]}
    # On a phone a longer title would be cut.
    lines = title.split(", ") if len(title) > 36 else title
    key = {"title": lines, "orient": "top", "gradientLength": {"expr": "min(width, 320)"}, "titleLimit": 600}
    bare = {"ticks": False, "domain": False, "title": None, "labelOverlap": True}
    tips = vega.tooltip(table, **{str(name): heading(str(name)) for name in table.columns if name != "row"})
    # Slanted names of a few columns lie above one another on a phone too; Vega would leave every second one out.
    slanted = {**bare, "labelAngle": -30, "labelLimit": 140, "labelOverlap": len(columns) > 8}
    each = {
        "x": {"field": across, "type": "ordinal", "sort": columns, "axis": slanted},
        "y": {"field": down, "type": "ordinal", "sort": rows, "axis": {**bare, "labelLimit": 150}},
        "color": vega.number(value, scale=scale, legend=key),
        "tooltip": tips,
    }
    height = min(1400, tall * len(rows)) + 160
    return vega.layered(height, [vega.layer("cells", {"type": "rect"}, **each)], {"cells": table})


def figure(table: pd.DataFrame, across: str, down: str, value: str, label: str, centred: bool) -> object:
    """The same for a paper."""
    from bora_analysis.figures.grids import grid as drawn  # here: the page goes without matplotlib

    return drawn(table, across=across, down=down, value=value, label=label, centred=centred)


def _key(adapters: tuple[tuple[Source, Adapter], ...], module: str, i: int) -> object:
    files = ((str(each.path), sources.stamp(each.path), each.label, adapter.step) for each, adapter in adapters)
    return tuple(files), module, i


@bounded(PAIR_BYTES, lambda rows: 500 * len(rows), _key)
def _pairs(adapters: tuple[tuple[Source, Adapter], ...], module: str, i: int) -> list[tuple[object, ...]]:
    found = []
    for source, adapter in adapters:
        try:
            with one_blas_thread():
                vectors = bases(adapter[module])
        except (AdapterError, NotFiniteError, OSError) as error:
            line = str(error).replace(str(source.path), source.label)
            raise AdapterError(line if module in line else f"{source.label}: {module}: {line}") from None
        found.append((source.label, adapter.base_model, {side: vectors[side][:, :i] for side in SIDES}))
    rows: list[tuple[object, ...]] = []
    for (one, first, u), (two, second, v) in combinations(found, 2):
        if first and second and first != second:
            continue
        for side in SIDES:
            a, b = u[side], v[side]
            if len(a) == len(b) and a.shape[1] and b.shape[1]:
                sizes = a.shape[1], b.shape[1]
                phi = float(np.square(a.T @ b).sum()) / min(sizes)
                rows.append((one, two, module, side, *sizes, phi, random_similarity(*sizes, len(a))))
    return rows
