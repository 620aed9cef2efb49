"""One basis for many adapters: what it would keep of each, and the memory of a server that stores it once.

Of every module the server keeps U ∈ R^{m×k} and V ∈ R^{n×k} with orthonormal columns, the same for all adapters, and
of each adapter the core Uᵀ ΔW V ∈ R^{k×k} (Brüel-Gabrielsson et al., "Compress then Serve", arXiv 2407.00066, with full
cores). U and V are the top k eigenvectors of Σ_a ΔW_a ΔW_aᵀ and Σ_a ΔW_aᵀ ΔW_a, every ΔW_a divided by the norm of its
adapter over all modules, so that each adapter counts alike. This is the truncated higher-order SVD (De Lathauwer, De
Moor & Vandewalle, SIAM J. Matrix Anal. Appl. 21, 2000): bases of smaller k are their first columns, and what is lost is
at most twice what the best bases of that k lose.

Nothing is formed but through the factors: ΔW = L R, thin QR of Rᵀ and of L, and the SVD of all adapters' side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..adapters import Adapter, AdapterError
from ..adapters.given import named_apart
from ..linalg import Array
from ..linalg.solvers import svd_with_vectors
from .numbers import read_fleet
from .reopened import reopened

if TYPE_CHECKING:
    import pandas as pd

#: Directions of a module that are looked at; what a larger shared rank keeps is not computed.
MOST = 1024


@dataclass(frozen=True, eq=False, repr=False)
class SharedBasis:
    """What a shared basis keeps of N adapters.

    Attributes
    ----------
    kept : rank, id, name, kept: the share of an adapter's Σσ² over all modules in the bases of that rank.
    modules : rank, module, adapters (that have it), kept (their mean, each by its own norm there).
    sizes : rank, numbers (that a server stores: U, V and the cores of all adapters), numbers_now (A and B of each, at
        the rank that its method allows).
    """

    kept: pd.DataFrame
    modules: pd.DataFrame
    sizes: pd.DataFrame

    def __repr__(self) -> str:
        count = len(self.kept) // len(self.sizes)
        return f"<SharedBasis of {count} adapters, ranks to {self.kept['rank'].max()}>"

    def table(self) -> pd.DataFrame:
        """One row per rank: rank, adapters, kept_min, kept_5, kept_50, kept_95 (over them), memory.

        memory is what a server stores with the shared bases, divided by what it stores now.
        """
        groups = self.kept.groupby("rank")["kept"]
        found = groups.agg(adapters="size", kept_min="min").reset_index()
        for percent in (5, 50, 95):
            found[f"kept_{percent}"] = groups.quantile(percent / 100).to_numpy()
        return found.assign(memory=(self.sizes["numbers"] / self.sizes["numbers_now"]).to_numpy())

    def rank_for(self, share: float) -> int | None:
        """The first of the ranks whose bases keep the share of every adapter; None where none does."""
        least = self.kept.groupby("rank")["kept"].min()
        enough = least.index[least >= share - 1e-12]
        return int(enough[0]) if len(enough) else None


def shared_basis(
    adapters: Any,
    *,
    base_model: str | None = None,
    ranks: Sequence[int] | None = None,
    on_module: Callable[[], object] | None = None,
    **reading: Any,
) -> SharedBasis:
    """What the shared basis of N adapters keeps of each as its rank grows.

    Parameters
    ----------
    adapters : as for :func:`bora_analysis.fleet.numbers.read_fleet`, whose adapters are read again with the options of
        the sweep; or a list of what :func:`bora_analysis.read_adapter` takes. Those without an update are left out.
    base_model : of a sweep; by default the one with the most adapters.
    ranks : by default the powers of two below what keeps all, and that; at most ``MOST``.
    on_module : called after each module.
    reading : options of reading.

    Returns
    -------
    SharedBasis

    Raises
    ------
    AdapterError
        An adapter that is not there any more, modules of one name with different sizes, fewer than one adapter.
    ValueError
        A rank below 1.

    Notes
    -----
    Cost, of a module with N adapters of rank r: O(m · min(m, Nr) · Nr), the same with n, and O(k² r) for each adapter.
    Memory: the factors of one module of all adapters, and their cores.

    Examples
    --------
    >>> from bora_analysis import synthetic_adapter
    >>> from bora_analysis.fleet.basis import shared_basis
    >>> made = [synthetic_adapter("lora", {"layers.0.q": (64, 48)}, r=2, seed=seed) for seed in range(3)]
    >>> found = shared_basis(made, ranks=[1, 6])
    >>> found, found.table()["kept_min"].round(6).tolist()[-1]
    (<SharedBasis of 3 adapters, ranks to 6>, 1.0)
    """
    if ranks is not None and (not ranks or min(ranks) < 1):
        raise ValueError(f"ranks are {list(ranks)}; expected whole numbers from 1 on")
    if isinstance(adapters, Sequence) and not isinstance(adapters, str):
        given, names, fleet = list(adapters), None, None
    else:
        fleet = read_fleet(adapters)
        fleet = fleet.of_base(str(fleet.bases().index[0]) if base_model is None else base_model)
        if fleet.results is None:
            raise AdapterError("the fleet is of metrics alone; expected the results of a sweep, or a list of adapters")
        given, names = fleet.adapters["id"].tolist(), fleet.adapters["name"].tolist()
    with reopened(given, fleet, **reading) as opened:
        names = names or [each.name for each in named_apart(opened)]
        ids = [name if isinstance(each, Adapter) else str(each) for each, name in zip(given, names, strict=True)]
        return _found(opened, ids, names, ranks, on_module or (lambda: None))


@dataclass(frozen=True)
class _Module:
    """One module of the adapters that have it.

    Attributes
    ----------
    who : their places. energies : (N,) ‖ΔW‖_F². kept : (N, K) the energy in the bases of rank 1, 2, … K, at most
        ``MOST``; beyond K it is that of K.
    edges : m + n. directions : of U and of V that there are, at most. now : Σ r (m + n) of the adapters.
    """

    who: list[int]
    energies: Array
    kept: Array
    sides: tuple[tuple[int, int], tuple[int, int]]
    now: int


def _found(
    adapters: list[Adapter],
    ids: list[str],
    names: list[str],
    ranks: Sequence[int] | None,
    on_module: Callable[[], object],
) -> SharedBasis:
    import pandas as pd

    modules: dict[str, list[int]] = {}
    for place, adapter in enumerate(adapters):
        for module in adapter:
            modules.setdefault(module, []).append(place)
    energies = np.zeros(len(adapters))
    for place, adapter in enumerate(adapters):
        for module in adapter:
            left, right = adapter[module].factors()
            energies[place] += max(0.0, float(np.vdot(left.T @ left, right @ right.T)))
    if not (energies > 0).any():
        raise AdapterError("no adapter has an update; expected one with ΔW ≠ 0")
    most = MOST if ranks is None else max(ranks)
    found: dict[str, _Module] = {}
    for module, who in modules.items():
        moving = [place for place in who if energies[place] > 0]
        if moving:
            found[module] = _of_module(module, [adapters[place] for place in moving], moving, energies, most)
        on_module()
    whole = max(each.kept.shape[1] for each in found.values())
    wanted = sorted({*(ranks or [*(2**k for k in range(12) if 2**k < whole), whole])})
    there = np.flatnonzero(energies > 0)
    kept, shares, sizes = [], [], []
    for rank in wanted:
        total = np.zeros(len(adapters))
        numbers = now = 0
        for module, each in found.items():
            own = each.kept[:, min(rank, each.kept.shape[1]) - 1]
            total[each.who] += own
            moving = each.energies > 0
            part = float(np.mean(own[moving] / each.energies[moving])) if moving.any() else np.nan
            shares.append((rank, module, len(each.who), part))
            (m, left), (n, right) = each.sides
            left, right = min(rank, left), min(rank, right)
            numbers += m * left + n * right + len(each.who) * left * right
            now += each.now
        parts = np.clip(total[there] / energies[there], 0, 1)
        kept += [(rank, ids[place], names[place], part) for place, part in zip(there.tolist(), parts, strict=True)]
        sizes.append((rank, numbers, now))
    return SharedBasis(
        pd.DataFrame(kept, columns=["rank", "id", "name", "kept"]),
        pd.DataFrame(shares, columns=["rank", "module", "adapters", "kept"]),
        pd.DataFrame(sizes, columns=["rank", "numbers", "numbers_now"]),
    )


def _of_module(module: str, adapters: list[Adapter], who: list[int], energies: Array, most: int) -> _Module:
    pairs, now = [], 0
    for adapter in adapters:
        update = adapter[module]
        pairs.append(tuple(np.asarray(factor, dtype=np.float64) for factor in update.factors()))
        m, n = update.shape
        now += update.facts.rank_bound * (m + n)
    shapes = {(left.shape[0], right.shape[1]) for left, right in pairs}
    if len(shapes) > 1:
        told = ", ".join(f"{m}×{n}" for m, n in sorted(shapes))
        raise AdapterError(f"{module}: adapters have it in sizes {told}; expected one")
    scales = 1 / np.sqrt(energies[who])
    # ΔW ΔWᵀ = M Mᵀ with M = L T, T from the thin QR of Rᵀ; the other side alike.
    lefts = [left @ np.linalg.qr(right.T)[1].T * scale for (left, right), scale in zip(pairs, scales, strict=True)]
    rights = [right.T @ np.linalg.qr(left)[1].T * scale for (left, right), scale in zip(pairs, scales, strict=True)]
    U, V = (_directions(np.concatenate(each, axis=1), most) for each in (lefts, rights))
    size = max(U.shape[1], V.shape[1])
    kept, own = np.empty((len(pairs), size)), np.empty(len(pairs))
    for place, (left, right) in enumerate(pairs):
        core = np.zeros((size, size))
        core[: U.shape[1], : V.shape[1]] = (U.T @ left) @ (right @ V)
        kept[place] = np.square(core).cumsum(axis=0).cumsum(axis=1).diagonal()
        own[place] = max(0.0, float(np.vdot(left.T @ left, right @ right.T)))
    sides = (pairs[0][0].shape[0], U.shape[1]), (pairs[0][1].shape[1], V.shape[1])
    return _Module(who, own, kept, sides, now)


def _directions(stacked: Array, most: int) -> Array:
    """The left singular vectors of a matrix, of the largest σ, without those of rounding."""
    m, columns = stacked.shape
    if columns > m:
        values, vectors = np.linalg.eigh(stacked @ stacked.T)
        values, vectors = np.sqrt(np.maximum(values[::-1], 0)), vectors[:, ::-1]
    else:
        vectors, values, _ = svd_with_vectors(stacked)
    least = values[0] * max(m, columns) * np.finfo(float).eps if columns <= m else values[0] * 1e-8
    count = int(np.count_nonzero(values > least))
    return vectors[:, : max(1, min(count, most))]
