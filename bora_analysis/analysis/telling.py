"""Which few modules say most about an adapter, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from ..files.errors import counted
from .columns import Columns
from .tables import LOST
from .verdict import short_modules


class Telling(NamedTuple):
    """A module: its path, its short name, and the reason why it is named."""

    module: str
    name: str
    reason: str


def telling(layers: Any, count: int = 3) -> list[Telling]:
    """At most ``count`` modules of one adapter and step, each for another reason, the weightiest first.

    Examples
    --------
    >>> from bora_analysis import layer_metrics, synthetic_adapter
    >>> shapes = {f"layers.{k}.q_proj": (64, 32) for k in range(2)}
    >>> [each.name for each in telling(layer_metrics(synthetic_adapter("lora", shapes, r=4)))]
    ['layer 1 q', 'layer 0 q']
    """
    layers = Columns.of(layers)
    names = short_modules(layers)
    found: dict[str, list[str]] = {}
    for module, reason in _reasons(layers):
        if module in found or len(found) < count:
            found.setdefault(module, []).append(reason)
    return [Telling(module, names[module], "; ".join(reasons[:2])) for module, reasons in found.items()]


def _reasons(layers: Columns) -> Iterator[tuple[str, str]]:
    moved = layers.rows(layers["spectral_norm"] > 0)
    none = layers["spectral_norm"] <= 0
    lost = none & np.isnan(layers["energy_rank_99"].astype(float))
    for rows, what, why in ((none & ~lost, "ΔW = 0", "nothing was trained"), (lost, "ΔW ≈ 0", LOST.format("float64"))):
        still = layers.rows(rows)
        if len(still):
            others = f", like {counted(len(still) - 1, 'other')}" if len(still) > 1 else ""
            yield still["module"][0], f"{what}{others}: {why}"
    if not len(moved):
        return
    sizes = moved["frobenius_norm"]
    energy = (sizes / sizes.max()) ** 2  # Σσ² itself may leave the range of float64
    whole, fair = energy.sum(), 1 / len(moved)
    largest = energy.argmax()
    share = energy[largest] / whole
    if len(moved) > 1 and share > 1.5 * fair:
        yield (
            moved["module"][largest],
            f"the largest update: {share:.0%} of the adapter's energy, {share / fair:.1f} times an even share",
        )
    known = moved.rows(~np.isnan(moved["energy_rank_99"].astype(float)) & ~np.isnan(moved["stable_rank"]))
    if not len(known):
        return
    names, bound, stable = known["module"], known["rank_bound"].astype(int), known["stable_rank"]
    needed = known["energy_rank_99"].astype(int)
    used = needed / bound
    room = np.minimum(known["out_features"], known["in_features"])
    short = np.flatnonzero((needed == bound) & (bound < room))
    if len(short):
        flattest = short[(stable[short] / bound[short]).argmax()]
        yield (
            names[flattest],
            f"needs all {bound[flattest]} directions: its spectrum ends before it decays, more rank may help",
        )
    fewest = used.argmin()
    if used.min() < (used.max() if len(known) > 1 else 1):  # what needs all of its directions is told above
        verb = "direction holds" if needed[fewest] == 1 else "directions hold"
        yield names[fewest], f"{needed[fewest]} {verb} 99 % of its energy, of {bound[fewest]} allowed"
    sharpest = stable.argmin()
    if needed[sharpest] > 1:
        yield names[sharpest], f"its first direction alone has {1 / stable[sharpest]:.0%} of its energy"
    widest = used.argmax()
    if used.min() < used.max() < 1:
        yield names[widest], f"the widest: {needed[widest]} of {bound[widest]} directions for 99 % of its energy"
    smallest = energy.argmin()
    if energy[smallest] < whole * fair / 2:
        yield moved["module"][smallest], f"the smallest update: {energy[smallest] / whole:.1%} of the adapter's energy"
