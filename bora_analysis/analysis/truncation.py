"""The best approximations of updates: cut to a rank, with their largest singular values capped, and what is lost.

The best approximation of rank k is the truncated SVD (Eckart & Young 1936; Mirsky 1960), and its error is known:
‖ΔW − ΔW_k‖₂ = σ_{k+1} and ‖ΔW − ΔW_k‖_F = (Σ_{i>k} σ_i²)^½. Rounding to the file's dtype is added to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..catalogue.dtypes import EPSILON
from ..linalg import Array, norm
from ..linalg.inertia import spectral_norm
from ..metrics import effective_rank, energy_rank, numerical_rank
from ..threshold import Threshold
from ..updates.blocks import lora
from ..updates.checks import is_finite
from ..updates.contract import FactorError, Update
from .vectors import SingularVectors, singular_vectors


@dataclass(frozen=True)
class Cut:
    """Rank k with which an update is kept, and what is lost.

    Attributes
    ----------
    rank_before : numerical rank of ΔW in float64.
    rank : k.
    energy_kept : Σ_{i≤k} σ² / Σσ², with the capped σ above; 1 for ΔW = 0.
    error_spectral, error_frobenius : ‖ΔW − B A‖₂ and ‖ΔW − B A‖_F with the factors as they are written, in their dtype.
    error_relative : ‖ΔW − B A‖_F / ‖ΔW‖_F; 0 for ΔW = 0.
    capped : how many σ were above the cap.
    energy_capped : the share of Σσ² that the cap took.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora
    >>> *_, cut = truncated(lora(np.eye(4)[:, :2] * [4.0, 3.0], np.eye(2, 5)), rank=1)
    >>> cut.rank_before, cut.rank, round(cut.energy_kept, 9), round(cut.error_relative, 9)
    (2, 1, 0.64, 0.6)
    """

    rank_before: int
    rank: int
    energy_kept: float
    error_spectral: float
    error_frobenius: float
    error_relative: float
    capped: int = 0
    energy_capped: float = 0.0


def rule(
    rank: int | None, energy: float | None, threshold: Any = None, cap_sigma: float | None = None
) -> Callable[[Array], int]:
    """Singular values → how many to keep, be they there or not."""
    given = [
        name for name, value in (("rank", rank), ("energy", energy), ("threshold", threshold)) if value is not None
    ]
    if len(given) > 1:
        raise ValueError(f"{' and '.join(given)} are given; expected one of rank, energy and threshold")
    if rank is not None and rank < 1:
        raise ValueError(f"rank is {rank}; expected at least 1")
    if energy is not None and not 0 < energy <= 1:
        raise ValueError(f"energy is {energy}; expected a share of Σσ² above 0 and up to 1")
    tau = None if threshold is None else Threshold.of(threshold)
    if cap_sigma is not None and not cap_sigma > 0:
        raise ValueError(f"cap_sigma is {cap_sigma}; expected a number > 0")

    def choose(values: Array) -> int:
        if rank is not None:
            return rank
        if energy is not None:
            return energy_rank(values, energy)
        return len(values) if tau is None else effective_rank(values, tau)

    return choose


def truncated(
    update: Update,
    *,
    rank: int | None = None,
    energy: float | None = None,
    threshold: float | str | Threshold | None = None,
    cap_sigma: float | None = None,
    dtype: str = "float64",
    scaling: float = 1.0,
) -> tuple[Array, Array, Cut]:
    """B (m, k) and A (k, n), with scaling · B A = ΔW_k, rounded to ``dtype``, and what is lost.

    Both carry the root of the singular values, so that neither is much larger than the other. For k = 0 they are zeros
    of rank 1. Parameters as for :func:`bora_analysis.convert`; without a wish k is ΔW's rank. FactorError where
    ``dtype`` has not the range for a factor.
    """
    choose = rule(rank, energy, threshold, cap_sigma)
    found = singular_vectors(update)
    values = found.values if cap_sigma is None else np.minimum(found.values, cap_sigma)
    full = numerical_rank(found.values, found.rounding)
    k = min(full, choose(values))
    root = np.sqrt(values[:k] / scaling) if k else np.zeros(1)
    exact = found.left[:, : len(root)] * root, root[:, None] * found.right[: len(root)]
    B, A = (_stored(name, factor, dtype) for name, factor in zip("BA", exact, strict=True))
    gaps = np.concatenate([found.values[:k] - values[:k], found.values[k:]])
    spectral, lost, total = float(gaps.max(initial=0.0)), norm(gaps), norm(found.values)
    E, F = exact[0] - B, exact[1] - A
    if E.any() or F.any():
        core = _lost(found, gaps, root, E, F, scaling)
        spectral, lost = spectral_norm(core), norm(core)
    over = np.sqrt(found.values - values) * np.sqrt(found.values + values)
    cut, taken = ((norm(part) / total) ** 2 if total else 0.0 for part in (values[k:], over))
    count = int(np.count_nonzero(over))
    return B, A, Cut(full, k, 1 - cut - taken, spectral, lost, lost / total if total else 0.0, count, taken)


def truncated_groups(
    update: Update,
    *,
    rank: int | None = None,
    energy: float | None = None,
    threshold: float | str | Threshold | None = None,
    cap_sigma: float | None = None,
    dtype: str = "float64",
    scaling: float = 1.0,
) -> tuple[Array, Array, Cut]:
    """The same of a grouped convolution: B (m, k/g) and A (k, n), where rows g of ΔW are B's rows g times A's rows g.

    Each group's rows are cut to their own SVD, all to one rank, as PEFT has them.
    """
    g = update.facts.groups
    if cap_sigma is not None:
        raise FactorError("ΔW", "is of a grouped convolution, whose capped ΔW has other groups; leave out the cap")
    if rank is not None and rank < g:
        raise FactorError("ΔW", f"is of a convolution in {g} groups; expected a rank of at least {g}")
    rule(rank, energy, threshold)
    whole = singular_vectors(update)
    parts = [
        singular_vectors(lora(rows, whole.right, any_rank=True)) for rows in np.split(whole.left * whole.values, g)
    ]
    values = np.stack([part.values for part in parts])
    k = max(1, *(numerical_rank(part.values, max(part.rounding, whole.rounding)) for part in parts))
    shares = np.square(values).sum(axis=0)
    if rank is not None:
        k = min(k, rank // g)
    elif energy is not None:
        k = min(k, energy_rank(np.sqrt(shares), energy))
    elif threshold is not None:
        limit = Threshold.of(threshold).limit(whole.values.max(initial=0.0), norm(whole.values))
        k = min(k, max(1, *((values > limit).sum(axis=1))))
    root = np.sqrt(values[:, :k] / scaling)
    B = np.concatenate([part.left[:, :k] * own for part, own in zip(parts, root, strict=True)])
    A = np.concatenate([own[:, None] * part.right[:k] for part, own in zip(parts, root, strict=True)])
    B, A = _stored("B", B, dtype), _stored("A", A, dtype)
    dense = np.concatenate([b @ a for b, a in zip(np.split(B, g), np.split(A, g), strict=True)])
    gap, total = update.to_dense() - scaling * dense, norm(whole.values)
    spectral, lost = spectral_norm(gap), norm(gap)
    kept = 1 - (norm(values[:, k:]) / total) ** 2 if total else 1.0
    full = numerical_rank(whole.values, whole.rounding)
    return B, A, Cut(full, k * g, kept, spectral, lost, lost / total if total else 0.0)


def _stored(name: str, factor: Array, dtype: str) -> Array:
    """The factor rounded to the dtype, in float64."""
    with np.errstate(over="ignore"):
        rounded = factor.astype(dtype).astype(np.float64)
    if not is_finite(rounded):
        raise FactorError(name, f"holds values beyond the range of {dtype}; expected a wider dtype")
    if norm(rounded - factor) > EPSILON[dtype] * norm(factor):  # rounding alone makes at most half of it
        raise FactorError(
            name, f"holds values below the range of {dtype} (the largest is {np.abs(factor).max():.2g}); "
            "expected bfloat16 or a wider dtype"
        )  # fmt: skip
    return rounded


def _lost(found: SingularVectors, gaps: Array, root: Array, E: Array, F: Array, scaling: float) -> Array:
    """A matrix with the singular values of ΔW − s (B − E)(A − F), where s B A is ΔW less its ``gaps``.

    That is the gaps and s E A + s (B − E) F. In an orthonormal basis of the singular vectors and of what E and F have
    beside them, all of it is small.
    """
    k, beyond = len(root), np.arange(len(gaps))
    left, right = _coordinates(found.left, E), _coordinates(found.right.T, F.T)
    core = np.zeros((len(left), len(right)))
    core[beyond, beyond] = gaps
    core[:, :k] += left * (scaling * root)
    core += (np.eye(len(left), k) * root - left) @ (scaling * right.T)
    return core


def _coordinates(basis: Array, columns: Array) -> Array:
    """In the basis, and in another one of what is orthogonal to it, whose Gram matrix is known without it."""
    inside = basis.T @ columns
    squares, axes = np.linalg.eigh(columns.T @ columns - inside.T @ inside)
    return np.concatenate([inside, np.sqrt(np.maximum(squares, 0))[:, None] * axes.T])
