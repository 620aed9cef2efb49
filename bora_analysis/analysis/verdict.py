"""One sentence on the rank that an adapter uses."""

from __future__ import annotations

from typing import Any, Unpack

import numpy as np

from .given import layers_of
from .tables import Analysis

#: Share of Σσ² that a direction must help to hold, as for :func:`bora_analysis.recommend`.
SHARE = 0.99
_WORDS = {
    "spare": "spare (at most half of it is needed)",
    "fits": "about right",
    "short": "short (the spectrum ends early)",
}


def verdict(adapters: Any, **options: Unpack[Analysis]) -> str:
    """How many directions hold 99 % of the energy, of how many allowed, and whether rank is spare, right or short.

    By the rules of :func:`bora_analysis.recommend`, module by module; of several steps the last.

    Parameters
    ----------
    adapters : a frame of :func:`bora_analysis.layer_metrics`, or what that takes, with its options.

    Returns
    -------
    str

    Examples
    --------
    >>> from bora_analysis import synthetic_adapter, verdict
    >>> shapes = {f"layers.{k}.q_proj": (64, 32) for k in range(2)}
    >>> verdict(synthetic_adapter("lora", shapes, r=16, kind="decay", decay=2.0))
    '99 % of the energy lies in 3.0 of 16 directions on average. Rank is spare (at most half of it is needed).'
    """
    layers = layers_of(adapters, **options)
    steps = layers["step"]
    used: Any = layers[(layers["spectral_norm"] > 0) & ((steps == steps.max()).fillna(False) | steps.isna())]
    if used.empty:
        return "ΔW = 0 in every module."
    used = used.dropna(subset=["energy_rank_99"])  # a quick analysis does not tell
    if used.empty:
        return ""
    needed, bound = used["energy_rank_99"], used["rank_bound"]
    text = f"99 % of the energy lies in {needed.mean():.1f} of {bound.mean():.4g} directions on average"
    low, high = used.loc[needed.idxmin()], used.loc[needed.idxmax()]
    if low["energy_rank_99"] < high["energy_rank_99"]:
        ends = [f"{row['energy_rank_99']:.0f} ({row['module']})" for row in (low, high)]
        text += f", from {ends[0]} to {ends[1]}"
    ends_early = (needed == bound) & (bound < used[["out_features", "in_features"]].min(axis=1))
    kinds = np.where(needed <= bound / 2, "spare", np.where(ends_early, "short", "fits"))
    found = {kind: int((kinds == kind).sum()) for kind in _WORDS if (kinds == kind).any()}
    parts = [
        _WORDS[kind] + (f" in {count} of {len(kinds)} modules" if len(found) > 1 else "")
        for kind, count in found.items()
    ]
    return f"{text}. Rank is {', '.join(parts)}."
