"""Mixtures of experts: what stands for the ΔW of a layer whose update depends on a router."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..linalg import Array
from .blocks import lora
from .checks import coarsest, factor
from .contract import FactorError
from .sums import BlockProduct, block_diagonal


def routing(route: Any, inputs: Any) -> Array:
    """Mean over the inputs of the router's weights: (1/T) Σ_t softmax(route x_t).

    Parameters
    ----------
    route : (K, d) the router's matrix.
    inputs : (T, d) what it sees: a batch of the layer's inputs (HydraLoRA), or task embeddings (MoELoRA).

    Returns
    -------
    (K,) float64, positive, with sum 1.

    Examples
    --------
    >>> routing(np.array([[0.0], [np.log(3.0)]]), [[1.0]]).round(9).tolist()
    [0.25, 0.75]
    """
    (matrix, _), (x, _) = factor("route", route, 2, None), factor("inputs", inputs, 2, None)
    if x.shape[1] != matrix.shape[1]:
        raise FactorError("inputs", f"have shape {x.shape}; expected (T, {matrix.shape[1]}) from route {matrix.shape}")
    from scipy.special import softmax  # here: importing it takes longer than --help may

    return softmax(x.astype(np.float64) @ matrix.astype(np.float64).T, axis=1).mean(axis=0)


def mixed(
    B: Sequence[Any],
    A: Sequence[Any],
    choice: str | int | Any = "mean",
    *,
    method: str = "moelora",
    scaling: float = 1.0,
    router: int = 0,
    dtype: str | None = None,
) -> BlockProduct:
    """One update for a layer of K experts ΔW_k = scaling · B_k A_k.

    Parameters
    ----------
    B : K matrices (m, r).
    A : K matrices (r, n), or one that all share (HydraLoRA).
    choice :
        ``"mean"``, Σ ΔW_k / K; an array of K weights w, Σ w_k ΔW_k; a number k, ΔW_k alone; or ``"stacked"``,
        [ΔW_1; …; ΔW_K] ∈ R^{Km×n}. Its singular values bound those of every mixture, σ_i(Σ w_k ΔW_k) ≤ ‖w‖₂ σ_i, since
        a mixture is [w_1 I … w_K I] times the stack, and ‖w‖₂ ≤ 1 for a router's weights.
    router : trained numbers of the router.
    method, scaling, dtype : as for :func:`bora_analysis.updates.blocks.lora`.

    Examples
    --------
    >>> experts = [np.array([[1.0], [0.0]]), np.array([[0.0], [1.0]])]
    >>> mixed(experts, [np.ones((1, 3))], "mean").to_dense()[:, 0].tolist()
    [0.5, 0.5]
    >>> mixed(experts, [np.ones((1, 3))], "stacked").facts.out_features
    4
    """
    count, shared = len(B), len(A) == 1
    if not count or len(A) not in (1, count):
        raise FactorError("B", f"has {count} experts and A has {len(A)}; expected as many, or one A for all")
    options: dict[str, Any] = {"scaling": scaling, "method": method, "dtype": dtype, "any_rank": True}
    each = [lora(left, A[0 if shared else k], **options) for k, left in enumerate(B)]  # checks every pair
    facts = [one.facts for one in each]
    m, n, r = facts[0].out_features, facts[0].in_features, facts[0].r
    if any((one.out_features, one.in_features) != (m, n) for one in facts):
        raise FactorError("B", "has experts of several shapes; expected one")
    total = sum(m * one.r for one in facts) + n * (r if shared else sum(one.r for one in facts)) + router
    if isinstance(choice, int):
        # A shared A is counted with the first expert, so that the experts add up to the layer.
        own = m * facts[choice].r + (0 if shared and choice else n * facts[choice].r) + (router if not choice else 0)
        return replace(each[choice], facts=replace(facts[choice], parameters=own))
    left = [one.B[0].astype(np.float64) for one in each]
    right = [one.A[0].astype(np.float64) for one in each]
    if isinstance(choice, str) and choice == "stacked":
        tall = np.concatenate(left) if shared else block_diagonal(left)
        update = lora(tall, right[0] if shared else np.concatenate(right), **options)
    else:
        weights = np.full(count, 1 / count) if isinstance(choice, str) else np.asarray(choice, dtype=np.float64)
        if weights.shape != (count,) or (isinstance(choice, str) and choice != "mean"):
            given = choice if isinstance(choice, str) else weights.shape
            raise FactorError(
                "B", f"has {count} experts and the choice is {given}; expected {count} weights, or a word"
            )
        scaled = [w * one for w, one in zip(weights, left, strict=True)]
        if shared:
            update = lora(np.sum(scaled, axis=0), right[0], **options)
        else:
            update = lora(np.concatenate(scaled, axis=1), np.concatenate(right), **options)
    stored = coarsest(one.dtype for one in facts)
    return replace(update, facts=replace(update.facts, r=r, parameters=total, macs_per_token=total, dtype=stored))
