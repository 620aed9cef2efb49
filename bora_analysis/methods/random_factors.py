"""Random factors: what the recipes of the methods have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ..linalg import Array


@dataclass(frozen=True)
class Spec:
    """The settings of a recipe, see :class:`bora_analysis.adapters.synthetic.Synthetic`."""

    method: str
    shapes: Mapping[str, tuple[int, int]]
    r: int
    blocks: int = 1
    alpha: float | None = None
    kind: str = "gaussian"
    seed: int = 0
    scale: float = 0.1
    decay: float = 1.0


Parts = dict[str, Array]
#: Length of the vectors in VB-LoRA's bank, at most, and their number (PEFT's defaults).
LENGTH = 256


Maker = Callable[[Spec, "np.random.Generator", int, int], Parts]  # quoted: np.random is a slow import


class Recipe(NamedTuple):
    """How a method's random factors are made; whether it has an r, an α or blocks stands in the catalogue.

    Attributes
    ----------
    make : specification, generator, m, n → the parts.
    most : specification, m, n → the largest r; None where any will do.
    """

    make: Maker
    most: Callable[[Spec, int, int], int] | None = None


def slots(spec: Spec, count: int) -> Array:
    """k^−p for k = 1 … count; ones unless the kind is ``"decay"``."""
    return np.arange(1, count + 1) ** -(spec.decay if spec.kind == "decay" else 0.0)


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
