"""Which few modules say most about an adapter, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

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
    names = short_modules(layers)
    found: dict[str, list[str]] = {}
    for module, reason in _reasons(layers):
        if module in found or len(found) < count:
            found.setdefault(module, []).append(reason)
    return [Telling(module, names[module], "; ".join(reasons[:2])) for module, reasons in found.items()]


def _reasons(layers: Any) -> Iterator[tuple[str, str]]:
    moved = layers[layers["spectral_norm"] > 0]
    still = layers[layers["spectral_norm"] <= 0]
    if len(still):
        others = f", like {len(still) - 1} others" if len(still) > 1 else ""
        yield still["module"].iloc[0], f"ΔW = 0{others}: nothing was trained"
    if moved.empty:
        return
    whole = moved["energy"].sum()
    largest = moved.loc[moved["energy"].idxmax()]
    share, fair = largest["energy"] / whole, 1 / len(moved)
    if len(moved) > 1 and share > 1.5 * fair:
        yield (
            largest["module"],
            f"the largest update: {share:.0%} of the adapter's energy, {share / fair:.1f} times an even share",
        )
    known = moved.dropna(subset=["energy_rank_99", "stable_rank"])
    if known.empty:
        return
    used = known["energy_rank_99"] / known["rank_bound"]
    room = known[["out_features", "in_features"]].min(axis=1)
    short = known[(known["energy_rank_99"] == known["rank_bound"]) & (known["rank_bound"] < room)]
    if len(short):
        flattest = short.loc[(short["stable_rank"] / short["rank_bound"]).idxmax()]
        yield (
            flattest["module"],
            f"needs all {flattest['rank_bound']} directions: its spectrum ends before it decays, more rank may help",
        )
    fewest = known.loc[used.idxmin()]
    if used.min() < used.max() or len(known) == 1:
        few = int(fewest["energy_rank_99"])
        verb = "direction holds" if few == 1 else "directions hold"
        yield fewest["module"], f"{few} {verb} 99 % of its energy, of {fewest['rank_bound']} allowed"
    sharpest = known.loc[known["stable_rank"].idxmin()]
    if sharpest["energy_rank_99"] > 1:
        yield sharpest["module"], f"its first direction alone has {1 / sharpest['stable_rank']:.0%} of its energy"
    widest = known.loc[used.idxmax()]
    if used.min() < used.max() < 1:
        needed, bound = int(widest["energy_rank_99"]), widest["rank_bound"]
        yield widest["module"], f"the widest: {needed} of {bound} directions for 99 % of its energy"
    smallest = moved.loc[moved["energy"].idxmin()]
    if smallest["energy"] < whole * fair / 2:
        yield smallest["module"], f"the smallest update: {smallest['energy'] / whole:.1%} of the adapter's energy"
