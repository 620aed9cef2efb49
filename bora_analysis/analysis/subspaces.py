"""How much the subspaces of two updates overlap, through their singular vectors, never through ΔW.

φ(i, j) = ‖U_aⁱᵀ U_bʲ‖_F² / min(i, j) ∈ [0, 1] (LoRA, arXiv 2106.09685, §7.2, eq. 4): the share of the smaller of two
subspaces that lies in the other, for the top i and the top j singular directions. The paper takes the right singular
vectors of the factor A, which span the same rows but are ordered by A alone; here they are ΔW's own, left and right.

Two random subspaces overlap too. For u and v independent and uniform on the sphere of R^d, E(uᵀv)² = 1/d. Summed over
i · j pairs and divided by min(i, j), E φ(i, j) = max(i, j) / d, with d = m on the left and n on the right: what is
not above that is chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Unpack

import numpy as np

from ..adapters import AdapterError
from ..adapters.given import one_of
from ..adapters.merging import check_related
from ..adapters.reading import Options
from ..catalogue.module_names import layer, projection
from ..linalg import Array, NotFiniteError
from ..linalg.solvers import svd_values
from ..linalg.threads import in_order
from ..metrics import numerical_rank
from ..updates.contract import Update
from .progress import progress
from .vectors import singular_vectors

if TYPE_CHECKING:
    import pandas as pd

Side = Literal["left", "right"]
SIDES: tuple[Side, ...] = ("left", "right")
GRID_COLUMNS = (
    "adapter_a", "adapter_b", "module", "layer", "projection", "side", "dimension", "i", "j", "phi", "random",
)  # fmt: skip


def subspace_similarity(a: Update, b: Update, side: Side = "left") -> Array:
    """φ(i, j) for every i and j.

    Parameters
    ----------
    a, b : updates of one shape.
    side : ``"left"``: the directions that ΔW writes to (columns of U); ``"right"``: those it reads from (V).

    Returns
    -------
    (k_a, k_b) float64, φ(1, 1) first; k is an update's numerical rank for the dtype in which it is stored. Directions
    below that are rounding. Empty where an update is zero.

    Raises
    ------
    ValueError
        Shapes that differ, an unknown side.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora, subspace_similarity
    >>> first, second = lora(np.eye(4)[:, :2] * [2.0, 1.0], np.eye(2, 4)), lora(np.eye(4)[:, 1:2], np.eye(1, 4))
    >>> subspace_similarity(first, second, "left").round(12).tolist()  # e₂ is the second direction of the first
    [[0.0], [1.0]]
    """
    _check_pair(a, b)
    if side not in SIDES:
        raise ValueError(f"side {side!r} is unknown; expected {' or '.join(SIDES)}")
    return _phi(bases(a)[side], bases(b)[side])


def random_similarity(i: int, j: int, d: int) -> float:
    """E φ(i, j) of two independent random subspaces of R^d: max(i, j)/d. See the top of this module.

    >>> random_similarity(2, 8, 64)
    0.125
    """
    return max(i, j) / d


def principal_angles(a: Update, b: Update, i: int, j: int, side: Side = "left") -> Array:
    """Angles between the top i directions of one update and the top j of the other, ascending, in radians.

    cos θ are the singular values of U_aⁱᵀU_bʲ (Björck & Golub 1973), so φ(i, j) is the mean of cos²θ; small angles are
    found from their sines.

    Parameters
    ----------
    i, j : at least 1; at most as many as :func:`subspace_similarity` has.

    Raises
    ------
    ValueError
        As for :func:`subspace_similarity`; i or j out of range.

    Returns
    -------
    (min(i, j),) float64

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora, principal_angles
    >>> first, second = lora(np.eye(4)[:, :2] * [2.0, 1.0], np.eye(2, 4)), lora(np.eye(4)[:, 1:2], np.eye(1, 4))
    >>> np.rad2deg(principal_angles(first, second, 1, 1)).round(6).tolist()
    [90.0]
    """
    _check_pair(a, b)
    one, two = bases(a)[side], bases(b)[side]
    for name, value, basis in (("i", i, one), ("j", j, two)):
        if not 1 <= value <= basis.shape[1]:
            raise ValueError(f"{name} is {value}; expected 1 to {basis.shape[1]}, the rank of the update")
    return _angles(one[:, :i], two[:, :j])


def bases(update: Update) -> dict[Side, Array]:
    """Orthonormal columns, most important first: ``"left"`` (m, k) and ``"right"`` (n, k), k the numerical rank."""
    found = singular_vectors(update)
    k = numerical_rank(found.values, found.rounding)
    return {"left": found.left[:, :k], "right": found.right[:k].T}


class Similarity(NamedTuple):
    """What :func:`similarity` finds.

    Attributes
    ----------
    grid : adapter_a, adapter_b, module, layer, projection, side, dimension (m left, n right), i, j, phi, random
        (max(i, j)/d). No rows for a module that is zero in one of them.
    table : adapter_a, adapter_b, module, layer, projection, i, j, and for each side phi, random, angle (the smallest
        principal angle in degrees) and dimension. Missing for a module that is zero in one of them.

    Examples
    --------
    >>> from bora_analysis import similarity, synthetic_adapter
    >>> adapter = synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=4)
    >>> similarity(adapter, adapter).grid.query("side == 'left' and i == 2 and j == 2")["phi"].round(6).item()
    1.0
    """

    grid: pd.DataFrame
    table: pd.DataFrame


def similarity(
    one: Any,
    two: Any,
    *,
    i: int = 8,
    j: int = 8,
    force: bool = False,
    on_module: Callable[[], object] | None = None,
    **reading: Unpack[Options],
) -> Similarity:
    """The grids of φ of two adapters, and one row per module at (i, j).

    Parameters
    ----------
    one, two : adapters of one base model, each as for :func:`bora_analysis.read_adapter`; compared are the modules
        that both have.
    i, j : the largest numbers of directions; less where a module's numerical rank is less.
    force : compare adapters of several base models, too.
    on_module, reading : as for :func:`bora_analysis.analyse`.

    Returns
    -------
    Similarity

    Raises
    ------
    AdapterError
        Several base models; no module in common; shapes that differ.
    ValueError
        i or j below 1.

    Examples
    --------
    >>> from bora_analysis import similarity, synthetic_adapter
    >>> one, two = (synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=4, seed=seed) for seed in range(2))
    >>> similarity(one, one, i=2, j=2).table[["i", "j", "phi_left"]].round(6).values.tolist()
    [[2.0, 2.0, 1.0]]
    >>> grid, table = similarity(one, two)
    >>> len(grid), table["random_left"].item()
    (32, 0.0625)
    """
    import pandas as pd

    one, two = one_of(one, **reading), one_of(two, **reading)
    if min(i, j) < 1:
        raise ValueError(f"i is {i} and j is {j}; expected at least 1")
    common = [module for module in one if module in two]
    check_related([one, two], force=force and bool(common))

    def compare(module: str) -> tuple[dict[Side, Array], dict[str, Any]]:
        a, b = one[module], two[module]
        try:
            _check_pair(a, b)
        except ValueError as error:
            raise AdapterError(f"{one.name} and {two.name}: {module}: {error}") from None
        try:
            first, second = bases(a), bases(b)
        except NotFiniteError as error:
            raise AdapterError(f"{one.name} or {two.name}: {module}: {error}") from None
        grids, at = {}, {}
        for side in SIDES:
            U, V = first[side][:, :i], second[side][:, :j]
            grids[side] = _phi(U, V)
            at |= {"i": U.shape[1], "j": V.shape[1]}
            there = bool(grids[side].size)
            at[f"phi_{side}"] = float(grids[side][-1, -1]) if there else np.nan
            at[f"random_{side}"] = random_similarity(U.shape[1], V.shape[1], len(U)) if there else np.nan
            at[f"angle_{side}"] = float(np.rad2deg(_angles(U, V)[0])) if there else np.nan
            at[f"dimension_{side}"] = len(U)
        return grids, at

    parts, rows = [], []
    with progress(len(common), on_module) as step:
        found = [(module, result, step())[:2] for module, result in in_order(compare, common)]
    for module, (grids, at) in found:
        identity = dict(
            zip(GRID_COLUMNS, (one.name, two.name, module, layer(module), projection(module)), strict=False)
        )
        rows.append(identity | at)
        for side, grid in grids.items():
            rank_a, rank_b = np.indices(grid.shape).reshape(2, -1) + 1
            d = at[f"dimension_{side}"]
            numbers = {"i": rank_a, "j": rank_b, "phi": grid.ravel(), "random": np.maximum(rank_a, rank_b) / d}
            parts.append(pd.DataFrame(identity | {"side": side, "dimension": d} | numbers))
    whole = [part for part in parts if len(part)] or parts[:1]
    types = {"layer": "Int64"}
    return Similarity(pd.concat(whole, ignore_index=True).astype(types), pd.DataFrame(rows).astype(types))


def _angles(a: Array, b: Array) -> Array:
    wide, thin = (a, b) if a.shape[1] >= b.shape[1] else (b, a)
    overlap = wide.T @ thin
    cosines, sines = (svd_values(X[None])[0][0] for X in (overlap, thin - wide @ overlap))
    small = np.square(cosines) > 0.5
    return np.where(small, np.arcsin(np.minimum(sines[::-1], 1)), np.arccos(np.minimum(cosines, 1)))


def _phi(a: Array, b: Array) -> Array:
    squares = np.square(a.T @ b)
    sizes = np.indices(squares.shape) + 1
    return squares.cumsum(axis=0).cumsum(axis=1) / sizes.min(axis=0)


def _check_pair(a: Update, b: Update) -> None:
    one, two = ((u.facts.out_features, u.facts.in_features) for u in (a, b))
    if one != two:
        raise ValueError(f"the updates are {one[0]}×{one[1]} and {two[0]}×{two[1]}; expected one shape")
