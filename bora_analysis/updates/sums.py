"""Weighted sums of updates, through concatenated factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from .blocks import BlockProduct, lora
from .checks import coarsest
from .contract import Update


def combine(
    updates: Sequence[Update], weights: Sequence[float] | None = None, *, method: str | None = None
) -> BlockProduct:
    """ΔW = Σ_k w_k ΔW_k, through the concatenated factors [w_1 L_1 | w_2 L_2 …] and [R_1; R_2 …].

    A difference of two adapters, ReLoRA's sum, the mean of experts. The rank is at most the sum of the ranks. The
    factors stay apart even where they are as many as rows or columns: what cancels between them tells how much of the
    sum is rounding.

    Parameters
    ----------
    updates : of one shape and kind of layer, at least one.
    weights : one per update; default all 1.
    method : the name in tables; default that of the updates, joined by +.

    Returns
    -------
    BlockProduct
        With r = the summed inner sizes of the factors, scaling 1 (weights and scalings are in the factors), and the
        parameters and multiply-adds of the parts together. The rank bound, and the rows and columns that the update can
        change, are the sums of theirs, at most min(m, n), m and n.

    Raises
    ------
    ValueError
        No updates, different shapes or kinds, or another number of weights.

    Examples
    --------
    >>> from bora_analysis import lora
    >>> one = lora(np.ones((3, 1)), np.ones((1, 2)))
    >>> combine([one, one], [1.0, -1.0]).to_dense().any()
    np.False_
    """
    weights = [1.0] * len(updates) if weights is None else [float(w) for w in weights]
    each = [update.facts for update in updates]
    shapes = list(dict.fromkeys((f.out_features, f.in_features, f.kind, f.kernel) for f in each))
    if len(shapes) != 1 or len(weights) != len(updates):
        listed = ", ".join(
            f"{m}×{n}" + ("" if kind == "linear" else f" ({kind} {'×'.join(map(str, kernel))})")
            for m, n, kind, kernel in shapes
        )
        raise ValueError(
            f"cannot add updates of shapes {listed or 'none'} with {len(weights)} weights; expected one shape and kind"
        )
    pairs = [update.factors() for update in updates]
    total = lora(
        np.concatenate([w * left for w, (left, _) in zip(weights, pairs, strict=True)], axis=1),
        np.concatenate([right for _, right in pairs]),
        method=method or "+".join(dict.fromkeys(facts.method for facts in each)),
        dtype=coarsest(facts.dtype for facts in each),
        any_rank=True,
    )
    ((m, n, kind, kernel),) = shapes
    facts = replace(
        total.facts,
        parameters=sum(facts.parameters for facts in each),
        macs_per_token=sum(facts.macs_per_token for facts in each),
        rank_bound=min(m, n, sum(facts.rank_bound for facts in each)),
        support_rows=_support([facts.support_rows for facts in each], m),
        support_columns=_support([facts.support_columns for facts in each], n),
        kind=kind,
        kernel=kernel,
    )
    return replace(total, facts=facts)


def _support(sizes: Sequence[int | None], limit: int) -> int | None:
    """How many rows (or columns) of ``limit`` the sum of updates can change that can change so many; None for all."""
    known = [size for size in sizes if size is not None]
    return min(limit, sum(known)) if len(known) == len(sizes) else None
