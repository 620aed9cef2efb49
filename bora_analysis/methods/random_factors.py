"""Random factors: what the recipes and the nulls of the methods have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple
from zlib import crc32

import numpy as np

from ..catalogue import METHODS
from ..linalg import Array
from ..linalg.gaussian import gaussian_triangle, gaussian_values


@dataclass(frozen=True)
class Spec:
    """The settings of a recipe, see :class:`bora_analysis.adapters.synthetic.Synthetic`.

    ``layer`` is the place among all of the module that is made.
    """

    method: str
    shapes: Mapping[str, tuple[int, int]]
    r: int
    blocks: int = 1
    alpha: float | None = None
    kind: str = "gaussian"
    seed: int = 0
    scale: float = 0.1
    decay: float = 1.0
    base_spectrum: str = "mp"
    base_decay: float = 0.5
    pad: bool = False
    layer: int = 0

    @property
    def lora_alpha(self) -> float | None:
        """α of the whole file, of all stages together; None for a method without."""
        if not METHODS[self.method].scaled:
            return None
        if self.alpha is None:
            return 2.0 * self._whole_rank
        return float(self.alpha) * (self.blocks if METHODS[self.method].staged else 1)

    @property
    def scaling(self) -> float:
        alpha, r = self.lora_alpha, self._whole_rank
        return 1.0 if alpha is None else alpha / (math.sqrt(r) if self.method == "rslora" else r)

    @property
    def _whole_rank(self) -> int:
        row = METHODS[self.method]
        return self.r * (self.blocks if self.method == "moelora" or row.staged else 1)


def generator(spec: Spec, module: str) -> np.random.Generator:
    """That of one module, which depends on the seed and on its path."""
    return np.random.default_rng([spec.seed, crc32(module.encode())])


Parts = dict[str, Array]
#: Length of the vectors in VB-LoRA's bank, at most, and their number (PEFT's defaults).
LENGTH = 256


Maker = Callable[[Spec, "np.random.Generator", int, int], Parts]  # quoted: np.random is a slow import


class Recipe(NamedTuple):
    """How a method's random factors are made; whether it has an r, an α or blocks stands in the catalogue.

    Attributes
    ----------
    make : specification, generator, m, n → the parts.
    most : specification, m, n → the largest r; None where any will do. ValueError where a whole specification has none.
    exact_base : whether W0 is written in float32 whatever the adapter's dtype.
    """

    make: Maker
    most: Callable[[Spec, int, int], int] | None = None
    exact_base: bool = False


class Sizes(NamedTuple):
    """What a row of layer_metrics says of a module's sizes."""

    method: str
    m: int
    n: int
    r: int
    blocks: int
    parameters: int
    rank_bound: int
    activation: str = ""


class NoNullError(Exception):
    """Why there are no random factors to compare an update with."""


#: Directions of the bulk, the ratios of its Gaussian factors, and the share of Σσ² that it has; see ``bulk_edge``.
Bulk = tuple[int, tuple[float, ...], float]


class Null(NamedTuple):
    """Singular values of a method's random factors: what is zero at the start is Gaussian, the rest as at the start.

    Gaussian factors are drawn as the triangles of their QR (:func:`bora_analysis.linalg.gaussian.gaussian_triangle`).
    LoRA's A, Kaiming-uniform at the start, counts as Gaussian too: n independent numbers a row, of which only sums of n
    products matter.

    Attributes
    ----------
    cores : sizes, generator → stacks of cores, up to a factor; NoNullError where the sizes do not tell the structure.
    bulk : the law of all but a few singular values in large layers, where it is known.
    """

    cores: Callable[[Sizes, np.random.Generator], list[Array]]
    bulk: Callable[[Sizes], Bulk] | None = None


def bulk_edge(bulk: Bulk) -> float:
    """The largest σ of a bulk in large layers, of a ΔW with ‖ΔW‖_F = 1.

    A Gaussian matrix of k directions whose other side is k/c long has squared singular values of the law of Marchenko
    & Pastur (1967), with the S-transform 1/(1 + cz) for a mean of 1; that of a product of free factors is the product
    (Voiculescu 1987). Its inverse function (1 + z) Π(1 + c_i z) / z has the edge as its minimum over z > 0: for one
    factor (1 + √c)². So σ_edge² = share · ‖ΔW‖_F² / k · min_z (1 + z) Π(1 + c_i z) / z.

    >>> round(bulk_edge((100, (0.25,), 1.0)) ** 2 * 100, 6), round(bulk_edge((100, (0.0, 0.0), 1.0)) ** 2 * 100, 6)
    (2.25, 1.0)
    """
    k, ratios, share = bulk
    coefficients = np.array([1.0, 1.0])  # of (1 + z) Π(1 + c z), ascending
    for c in ratios:
        coefficients = np.convolve(coefficients, [1.0, c])
    falling = coefficients * (np.arange(len(coefficients)) - 1)  # z² times the derivative: one positive root
    while len(falling) > 1 and falling[-1] == 0:
        falling = falling[:-1]
    if len(falling) == 1:  # no spread: the minimum is at z = ∞
        return float(np.sqrt(share / k * coefficients[1]))
    roots = np.roots(falling[::-1])
    z = float(roots[(np.abs(roots.imag) < 1e-9 * np.abs(roots)) & (roots.real > 0)].real.max())
    return float(np.sqrt(share / k * np.polyval(coefficients[::-1], z) / z))


def pair_core(rng: np.random.Generator, m: int, n: int, r: int, *stack: int) -> Array:
    """Cores of B A, Gaussian (m, r) and (r, n)."""
    return gaussian_triangle(rng, m, r, *stack) @ gaussian_triangle(rng, n, r, *stack).swapaxes(-1, -2)


def pair_null(parameters: Callable[[Sizes], int] | None = None) -> Null:
    """That of B A; with a count of its parameters, it is for updates that have so many."""

    def cores(sizes: Sizes, rng: np.random.Generator) -> list[Array]:
        if parameters is not None:
            expect(sizes, parameters(sizes))
        return [pair_core(rng, sizes.m, sizes.n, sizes.r)[None]]

    def bulk(sizes: Sizes) -> Bulk:
        if parameters is not None:
            expect(sizes, parameters(sizes))
        return sizes.r, (sizes.r / sizes.m, sizes.r / sizes.n), 1.0

    return Null(cores, bulk)


def diagonal_null() -> Null:
    """That of B diag(d) A, all three Gaussian."""

    def cores(sizes: Sizes, rng: np.random.Generator) -> list[Array]:
        R, L = (gaussian_triangle(rng, size, sizes.r) for size in (sizes.m, sizes.n))
        return [((R * rng.standard_normal(sizes.r)) @ L.T)[None]]

    return Null(cores)


def whole_null() -> Null:
    """That of a Gaussian matrix."""

    def bulk(sizes: Sizes) -> Bulk:
        k = min(sizes.m, sizes.n)
        return k, (k / max(sizes.m, sizes.n),), 1.0

    return Null(lambda sizes, rng: [gaussian_values(rng, sizes.m, sizes.n).reshape(-1, 1, 1)], bulk)


def expect(sizes: Sizes, parameters: int) -> None:
    """NoNullError unless an update has as many trained numbers as its sizes say."""
    if sizes.parameters != parameters:
        raise NoNullError(
            f"trains {sizes.parameters:,} numbers and not {parameters:,}: its sizes do not tell its structure"
        )


def slots(spec: Spec, count: int) -> Array:
    """k^−p for k = 1 … count; ones unless the kind is ``"decay"``."""
    return np.arange(1, count + 1) ** -(spec.decay if spec.kind == "decay" else 0.0)


def few_entries(spec: Spec, rng: np.random.Generator, m: int, n: int, count: int) -> tuple[Array, Array]:
    """Values of entries of ΔW, and their places row by row in the flat matrix, ascending."""
    places = np.sort(rng.choice(m * n, count, replace=False))
    values = rng.standard_normal(count)
    if spec.kind == "decay":  # few share a row or column with the first
        values = np.sign(values) * rng.permutation(slots(spec, count))
    reach = (math.sqrt(m) + math.sqrt(n)) * math.sqrt(count / (m * n)) if spec.kind == "gaussian" else 1.0
    size = 0.0 if spec.kind == "init" else spec.scale / max(1.0, reach)
    return (size * values).astype(np.float32), places


def pair(spec: Spec, rng: np.random.Generator, m: int, n: int, r: int | None = None) -> tuple[Array, Array]:
    """B (m, r) and A (r, n) of the kind; the product's singular values are about the scale."""
    r, size = r or spec.r, math.sqrt(spec.scale)
    if spec.kind == "init":
        return np.zeros((m, r), np.float32), kaiming(rng, (r, n))
    B = rng.standard_normal((m, r), dtype=np.float32)
    A = rng.standard_normal((r, n), dtype=np.float32)
    if spec.kind == "gaussian":
        return B * np.float32(size / math.sqrt(m)), A * np.float32(size / math.sqrt(n))
    half = size * np.arange(1, r + 1) ** (-spec.decay / 2)
    return (orthonormal(B) * half).astype(np.float32), (orthonormal(A.T) * half).T.astype(np.float32)


def kaiming(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int | None = None) -> Array:
    """Kaiming-uniform with a = √5, as ``torch.nn.init`` draws a linear layer's weight: bound 1/√fan_in."""
    bound = 1 / math.sqrt(fan_in or shape[-1])
    return rng.uniform(-bound, bound, shape).astype(np.float32)


def orthonormal(X: Array) -> Array:
    """Orthonormal columns (rows, where there are more columns than rows), float64."""
    tall = X.shape[0] >= X.shape[1]
    Q = np.linalg.qr(X.astype(np.float64) if tall else X.T.astype(np.float64)).Q
    return Q if tall else Q.T
