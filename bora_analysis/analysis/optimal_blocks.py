"""The b with which BoRA reaches a rank most cheaply (arXiv 2508.06953, §3.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import isqrt, sqrt

from ..catalogue.sizes import common_divisors


@dataclass(frozen=True)
class Blocks:
    """Which b reaches a rank most cheaply with BoRA: N(b) = R((m+n)/b + b) for the rank bound R = br.

    Attributes
    ----------
    shapes : the (m, n) of the matrices, all with the same b and R; one entry per matrix.
    optimum : the real b at which N is least: √(m+n), for several matrices √ of the mean of m+n.
    paper : the paper's rule ⌊√n⌋ (§3.3), whether it divides or not; None where the matrices differ in n.
    valid : every b that divides all sizes, ascending.
    best : the valid b with the least N; several where they tie.
    """

    shapes: tuple[tuple[int, int], ...]
    optimum: float
    paper: int | None
    valid: tuple[int, ...]
    best: tuple[int, ...]

    def parameters(self, b: int, rank: int = 1) -> Fraction:
        """N(b), exact, summed over the matrices; with ``rank`` 1 per unit of rank. Whole for every valid b."""
        return rank * sum((Fraction(m + n, b) + b for m, n in self.shapes), Fraction(0))


def optimal_blocks(m: int, n: int) -> Blocks:
    """The b with which BoRA reaches a given rank with the fewest parameters, for one matrix (paper §3.3).

    >>> found = optimal_blocks(4096, 4096)
    >>> found.optimum, found.paper, found.best  # a tie
    (90.50966799187809, 64, (64, 128))
    >>> found.parameters(64) == found.parameters(128) == 192
    True
    >>> optimal_blocks(1024, 4096).best
    (64,)
    """
    return shared_blocks([(m, n)])


def shared_blocks(shapes: Sequence[tuple[int, int]]) -> Blocks:
    """As :func:`optimal_blocks`, for matrices (m, n) that are to share b and the rank R; one entry per matrix.

    >>> shared_blocks([(4096, 4096), (1024, 4096), (1024, 4096)]).best
    (64,)
    """
    check_shapes(shapes)
    total = sum(m + n for m, n in shapes)
    inputs = {n for _, n in shapes}
    valid = common_divisors(size for shape in shapes for size in shape)
    # b and not R decides: the sum over k matrices is R(total/b + kb).
    price = {b: Fraction(total, b) + len(shapes) * b for b in valid}
    least = min(price.values())
    return Blocks(
        shapes=tuple(shapes),
        optimum=sqrt(total / len(shapes)),
        paper=isqrt(inputs.pop()) if len(inputs) == 1 else None,
        valid=valid,
        best=tuple(b for b in valid if price[b] == least),
    )


def blocks_curve(m: int, n: int, rank: int = 1) -> dict[int, int]:
    """b → N(b) = R((m+n)/b + b) for every b that divides m and n; R = ``rank``.

    >>> blocks_curve(4, 4)
    {1: 9, 2: 6, 4: 6}
    """
    found = optimal_blocks(m, n)
    return {b: int(found.parameters(b, rank)) for b in found.valid}


def check_shapes(shapes: Sequence[tuple[int, int]]) -> None:
    if not shapes or any(size < 1 for shape in shapes for size in shape):
        raise ValueError(f"shapes are {list(shapes)}; expected at least one (m, n), both at least 1")
