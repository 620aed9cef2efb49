"""How much of ΔW each method can represent, against its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import style
from ..analysis.capture import CAPTURE_COLUMNS, shares
from ..analysis.capture import capture as capture_of
from ..analysis.members import same_set, set_label
from ..catalogue import METHODS
from . import data, page
from . import drawing as layout

#: As many adapters as a page shows, three beside each other.
MOST = 6


@page.in_style
def capture(
    table: Any,
    *,
    projection: str | None = None,
    labels: data.Labels | None = None,
    width: str = "neurips",
    height: float | None = None,
    font: str | None = None,
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Share of ΔW's energy that each method's nearest member keeps, against its trained parameters.

    One line per set of updates, named for all methods that have it, over all modules of an adapter; one panel per
    adapter. Dashed: LoRA between whole ranks. Open markers: the best case of a method that draws at random what is
    chosen here.

    Parameters
    ----------
    table : of :func:`bora_analysis.capture`, or the csv, json or parquet file of ``bora-analysis capture``, or an
        adapter, for which that is called.
    projection : only its modules.
    labels : of the panels, see :mod:`bora_analysis.figures`. With ``ax`` there is one adapter.
    width, height, font, title, ax : see :mod:`bora_analysis.figures`.
    """
    if isinstance(table, pd.DataFrame) and "captured" in table:
        frame = table
    elif isinstance(table, str | Path) and data.is_table_file(table):
        frame = data.table_of(table, "capture", CAPTURE_COLUMNS)
    else:
        frame = capture_of(table)
    found = shares(data.narrowed(frame, projection=projection))
    if found.empty:
        raise ValueError("nothing to draw: the table has no rows with ΔW ≠ 0")
    found["set"] = [same_set(method)[0] for method in found["method"]]
    panels = [part for _, part in found.groupby(["adapter", "step"], sort=False, dropna=False)]
    most = MOST if ax is None else 1
    if len(panels) > most:
        names = ", ".join(" step ".join(_named(part)) for part in panels[:8])
        raise ValueError(f"the table has {len(panels)} adapters and steps, {names}; expected at most {most}")
    shown = [method for method in METHODS if method in set(found["set"])]  # in the catalogue's order: LoRA has its blue
    looks = style.looks(((set_label(first), first) for first in shown), limit=40)
    titles = {name: name for name in (_named(part)[0] for part in panels)}
    titles |= data.relabelled(titles, labels)
    across = ceil(len(panels) / 2) if len(panels) > 3 else len(panels)
    if ax is not None:
        axes = [ax]
    else:
        rows = ceil(len(panels) / across)
        figure = page.blank(width, 3.0 if rows == 1 else 4.6, height)
        axes = [*figure.subplots(rows, across, sharex=True, sharey=True, squeeze=False).flat]
        for spare in axes[len(panels) :]:
            spare.set_axis_off()
    for place, part in zip(axes, panels, strict=False):
        _panel(place, part, looks)
        if len(panels) > 1 or labels is not None:
            name, *step = _named(part)
            place.set_title(layout.escaped(", step ".join([titles[name], *step])))
    for place in axes[::across]:
        place.set_ylabel("captured share of Σσ²")
    for place in axes[:-across]:
        place.set_xlabel("")
    return layout.finished(axes[0], ax, title, [*looks.values()])


def _named(part: pd.DataFrame) -> list[str]:
    """The adapter's name, and its step if it has one."""
    row = part.iloc[0]
    return [str(row["adapter"]), *([str(row["step"])] if pd.notna(row["step"]) else [])]


def _panel(axes: Axes, found: pd.DataFrame, looks: Mapping[str, style.Look]) -> None:
    """One adapter."""
    curve = found.sort_values("parameters")
    dashed: dict[str, Any] = {"color": layout.GUIDE, "lw": 0.8, "ls": (0, (4, 2)), "zorder": 1}
    axes.plot(curve["parameters"], curve["lora_captured"], gid="lora", **dashed)
    for method, whole in found.groupby("set", sort=False):
        look = looks[set_label(str(method))]
        options = {**layout.line(look), "clip_on": False}
        if whole["kind"].iloc[0] == "best case":
            options |= {"markerfacecolor": "white", "markeredgecolor": look.colour, "markeredgewidth": 0.8, "lw": 0.6}
        # A line has one number of blocks, where r is what grows.
        for _, part in whole.groupby(whole["blocks"] if METHODS[str(method)].ranked else lambda row: 0):
            axes.plot(part["parameters"], part["captured"], gid=f"captured:{method}", **options)
    layout.parameter_axis(axes, found["parameters"].tolist())
    axes.set_ylim(0, 1.02)
