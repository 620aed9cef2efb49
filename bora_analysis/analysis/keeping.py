"""Which directions of every ΔW of an adapter are kept: the k largest, the k smallest, k at random, a share of Σσ².

A direction is a singular value with its two vectors. They come from the factors, see
:func:`bora_analysis.analysis.vectors.singular_vectors`; an update without factors has a dense SVD.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..adapters import Adapter
from ..files.errors import AdapterError
from ..linalg import Array, NotFiniteError
from ..metrics import energy_rank, numerical_rank
from ..patterns import late
from ..updates.contract import Update
from .vectors import SingularVectors, singular_vectors

#: In which order directions are kept. Shares of Σσ² go from the largest on, and are called "energy" in tables.
ORDERS = ("largest", "smallest", "random")
ALL = "all"
_SHARE = late(r"(\d+(\.\d*)?|\.\d+)\s*%")
# Vectors of an adapter that stay in memory; those beyond are computed for every cut anew.
_MEMORY = 2 << 30


@dataclass(frozen=True)
class Keep:
    """What is kept of each ΔW.

    Attributes
    ----------
    k : number of directions; None for all of them, or a share.
    share : of Σσ², in each module; None for a number.
    order : one of :data:`ORDERS`, or ``"energy"``.
    draw : which random order, from 0 on.

    Examples
    --------
    >>> str(Keep(k=8)), str(Keep(share=0.995, order="energy")), str(Keep())
    ('8', '99.5%', 'all')
    """

    k: int | None = None
    share: float | None = None
    order: str = ORDERS[0]
    draw: int = 0

    @property
    def whole(self) -> bool:
        return self.k is None and self.share is None

    def __str__(self) -> str:
        return ALL if self.whole else f"{100 * self.share:.10g}%" if self.share is not None else str(self.k)


def keeps_of(given: str | Iterable[Any]) -> list[Keep]:
    """``"0,1,8,90%,all"``, or a list of numbers and such texts, without repetitions; ValueError for anything else.

    >>> [str(keep) for keep in keeps_of("0,1,8,90%,all")]
    ['0', '1', '8', '90%', 'all']
    """
    found: dict[Keep, None] = {}
    for each in given.split(",") if isinstance(given, str) else given:
        text = str(each).strip()
        share = _SHARE.fullmatch(text)
        if text == ALL:
            found[Keep()] = None
        elif text.isdecimal():
            found[Keep(k=int(text))] = None
        elif share and 0 < float(share[1]) <= 100:
            found[Keep(share=float(share[1]) / 100, order="energy")] = None
        else:
            raise ValueError(
                f"keep is {text!r}; expected numbers of directions, shares of Σσ² above 0 and up to 100%, or all, such "
                "as 0,1,8,90%,all"
            )
    if not found:
        raise ValueError("keep is empty; expected numbers of directions, such as 1,2,4,8,all")
    return list(found)


def planned(keeps: Sequence[Keep], orders: Sequence[str], draws: int) -> list[Keep]:
    """Every cut, ``all`` first, because the others are compared with it.

    Nothing, everything, and shares of Σσ² do not depend on the order.
    """
    for order in orders:
        if order not in ORDERS:
            raise ValueError(f"order is {order!r}; expected one of {', '.join(ORDERS)}")
    if draws < 1:
        raise ValueError(f"draws is {draws}; expected at least 1")
    found = [Keep()]
    for order in dict.fromkeys(orders):
        for keep in keeps:
            if keep.k:
                found += [Keep(k=keep.k, order=order, draw=draw) for draw in range(draws if order == "random" else 1)]
    return [*dict.fromkeys([*found[:1], *(keep for keep in keeps if not keep.k and not keep.whole), *found[1:]])]


@dataclass(frozen=True)
class Part:
    """What a cut keeps of an adapter.

    Attributes
    ----------
    rank : directions kept, mean over the modules.
    energy : share of Σσ² kept, of all modules together; 1 for ΔW = 0.
    energy_mean : the mean of the modules' own shares.
    parameters : of the kept directions as a LoRA, Σ k (m + n); of the whole adapter its own.
    chosen : module → indices of the directions.
    """

    rank: float
    energy: float
    energy_mean: float
    parameters: int
    chosen: dict[str, Array]


class Directions:
    """The singular values and vectors of every ΔW of an adapter.

    ``modules`` are those that are cut; the others are kept whole.

    Examples
    --------
    >>> from bora_analysis import synthetic_adapter
    >>> adapter = synthetic_adapter("lora", {"layers.0.q_proj": (64, 32)}, r=4, kind="decay", decay=0.5)
    >>> found = Directions(adapter, list(adapter))
    >>> found.part(Keep(k=1)).rank, round(found.part(Keep(k=1)).energy, 3), found.rank
    (1.0, 0.48, 4)
    >>> left, right = found.pair("layers.0.q_proj", found.part(Keep()).chosen["layers.0.q_proj"])
    >>> bool(np.allclose(left @ right, adapter["layers.0.q_proj"].to_dense()))
    True
    """

    def __init__(self, adapter: Adapter, modules: Iterable[str]):
        self.adapter, self.modules = adapter, list(modules)
        self.values: dict[str, Array] = {}
        self.sizes: dict[str, int] = {}
        self.parameters, self._held, self._vectors = 0, 0, dict[str, SingularVectors]()
        for module in adapter:
            update = adapter[module]
            found, facts = self._vectors_of(module, update), update.facts
            self.values[module] = found.values[: numerical_rank(found.values, found.rounding)]
            self.sizes[module] = facts.out_features + facts.in_features
            self.parameters += facts.parameters

    @property
    def rank(self) -> int:
        """The largest rank of a module that is cut: k from here on keeps everything."""
        return max((len(self.values[module]) for module in self.modules), default=0)

    def part(self, keep: Keep, seed: int = 0) -> Part:
        """What a cut keeps. ``seed`` and the draw decide on random orders, whose first k directions are kept."""
        rng = np.random.default_rng([seed, keep.draw])
        chosen = {module: np.arange(len(values)) for module, values in self.values.items()}
        for module in self.modules if not keep.whole else ():
            chosen[module] = _chosen(self.values[module], keep, rng)
        squares = {module: values**2 for module, values in _scaled(self.values)}
        totals = np.array([each.sum() for each in squares.values()])
        kept = np.array([squares[module][index].sum() for module, index in chosen.items()])
        own = kept[totals > 0] / totals[totals > 0]
        counts = [len(index) for index in chosen.values()]
        parameters = sum(count * self.sizes[module] for count, module in zip(counts, chosen, strict=True))
        return Part(
            float(np.mean(counts)),
            float(min(1.0, kept.sum() / totals.sum())) if len(own) else 1.0,
            float(min(1.0, own.mean())) if len(own) else 1.0,
            self.parameters if keep.whole else parameters,
            chosen,
        )

    def pair(self, module: str, index: Array) -> tuple[Array, Array]:
        """(m, k) and (k, n), float64, whose product is the sum of those directions."""
        found = self._vectors_of(module)
        return found.left[:, index] * found.values[index], found.right[index]

    def _vectors_of(self, module: str, update: Update | None = None) -> SingularVectors:
        if module in self._vectors:
            return self._vectors[module]
        try:
            found = singular_vectors(self.adapter[module] if update is None else update)
        except NotFiniteError as error:
            raise AdapterError(f"{self.adapter.path or self.adapter.name}: {module}: {error}") from None
        size = found.left.nbytes + found.right.nbytes
        if self._held + size <= _MEMORY:
            self._held += size
            self._vectors[module] = found
        return found


def _chosen(values: Array, keep: Keep, rng: np.random.Generator) -> Array:
    """Indices of the directions of one module, of σ in descending order."""
    if keep.share is not None:
        return np.arange(energy_rank(values, keep.share))
    order = {
        "largest": lambda: np.arange(len(values)),
        "smallest": lambda: np.arange(len(values))[::-1],
        "random": lambda: rng.permutation(len(values)),
    }[keep.order]()
    return order[: keep.k]


def _scaled(values: dict[str, Array]) -> Iterator[tuple[str, Array]]:
    """Divided by the largest of all, so that squares neither overflow nor vanish."""
    largest = max((float(each.max(initial=0.0)) for each in values.values()), default=0.0)
    for module, each in values.items():
        yield module, each / (largest or 1.0)
