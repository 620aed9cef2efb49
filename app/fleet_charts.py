"""Charts of the page Fleet."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from app import vega

#: Beyond this many adapters a map would be a megabyte of rectangles: those of the largest clusters are shown.
MAPPED = 120


def growth(points: pd.DataFrame, title: str, names: Mapping[str, str]) -> vega.Chart:
    """A point per adapter and projection; columns method, projection, id, r, value."""
    shown = vega.labelled(points).assign(adapter=points["id"].map(names))
    methods = list(dict.fromkeys(points["method"]))
    told = {"adapter": "adapter", "label": "method", "projection": "projection", "r": "r", "value": "value"}
    each = {
        "x": vega.log_number("r", "r", 8, "~g", base=2, padding=14),
        "y": vega.log_number("value", title, 6, "~g", padding=14),
        **vega.by_method(methods, vega.legend()),
        "tooltip": vega.tooltip(shown, **told),
    }
    return vega.layered(340, [vega.layer("points", vega.point(42), **each)], {"points": shown})


def ordered(pairs: Any) -> pd.DataFrame:
    """The cosines as rows a, b, cosine, in the order of the dendrogram; of many adapters the largest groups."""
    from scipy.cluster.hierarchy import leaves_list

    leaves = leaves_list(pairs.linkage())
    if len(leaves) > MAPPED:
        kept = set(pairs.clusters()["id"].head(MAPPED))
        ids = pairs.adapters["id"].to_numpy()
        leaves = np.array([leaf for leaf in leaves if ids[leaf] in kept])
    names = pairs.adapters["name"].to_numpy()[leaves]
    labels = [f"{k + 1} {name}" for k, name in enumerate(names)]  # names may repeat
    count = len(leaves)
    return pd.DataFrame(
        {"a": np.repeat(labels, count), "b": labels * count, "cosine": pairs.cosine[np.ix_(leaves, leaves)].ravel()}
    )


def cosines(shown: pd.DataFrame) -> vega.Chart:
    """:func:`ordered` as a map."""
    order = list(dict.fromkeys(shown["a"]))
    bare = {"labels": len(order) <= 40, "ticks": False, "title": None, "labelLimit": 160}
    colour = vega.number(
        "cosine", "cosine", scale={"scheme": "redblue", "domain": [-1, 1], "reverse": True}, legend={"orient": "top"}
    )
    each = {
        "x": vega.category("b", sort=order, axis={**bare, "labels": False}),
        "y": vega.category("a", sort=order, axis=bare),
        "color": colour,
        "tooltip": vega.tooltip(shown, a="adapter", b="other", cosine="cosine"),
    }
    return vega.layered(520, [vega.layer("cosines", {"type": "rect"}, **each)], {"cosines": shown})
