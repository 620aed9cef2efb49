"""How much of ΔW each method can represent, against its parameters."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .. import style
from ..analysis.capture import capture as capture_of
from ..analysis.capture import shares
from ..analysis.members import same_set, set_label
from ..catalogue import METHODS
from . import data
from . import drawing as layout


@layout.in_style
def capture(
    table: Any,
    *,
    projection: str | None = None,
    width: str = "neurips",
    title: str | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Share of ΔW's energy that each method's nearest member keeps, against its trained parameters.

    One line per set of updates, named for all methods that have it, over all modules of one adapter. Dashed: LoRA
    between whole ranks. Open markers: the best case of a method that draws at random what is chosen here.

    Parameters
    ----------
    table : of :func:`bora_analysis.capture`, or an adapter, for which that is called.
    projection : only its modules.
    width : a venue of :data:`bora_analysis.style.VENUES`.
    ax : axes to draw into; the figure returned is theirs, and ``width`` does not count.
    """
    if not (isinstance(table, pd.DataFrame) and "captured" in table):
        table = capture_of(table)
    found = shares(data.narrowed(table, projection=projection))
    if found.empty:
        raise ValueError("nothing to draw: the table has no rows with ΔW ≠ 0")
    adapters = found[["adapter", "step"]].drop_duplicates()
    if len(adapters) > 1:
        raise ValueError(f"the table has {', '.join(adapters['adapter'].astype(str))}; expected one adapter and step")

    axes = layout.one_axes(width, 3.0, ax)
    found["set"] = [same_set(method)[0] for method in found["method"]]
    shown = [method for method in METHODS if method in set(found["set"])]  # in the catalogue's order: LoRA has its blue
    looks = style.looks(((set_label(first), first) for first in shown), limit=40)
    curve = found.sort_values("parameters")
    dashed: dict[str, Any] = {"color": layout.GUIDE, "lw": 0.8, "ls": (0, (4, 2)), "zorder": 1}
    axes.plot(curve["parameters"], curve["lora_captured"], gid="lora", **dashed)
    for method, part in found.groupby("set", sort=False):
        look = looks[set_label(str(method))]
        options = {**layout.line(look), "clip_on": False}
        if part["kind"].iloc[0] == "best case":
            options |= {"markerfacecolor": "white", "markeredgecolor": look.colour, "markeredgewidth": 0.8, "lw": 0.6}
        axes.plot(part["parameters"], part["captured"], gid=f"captured:{method}", **options)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("captured share of Σσ²")
    return layout.finished(axes, ax, title, [*looks.values()])
