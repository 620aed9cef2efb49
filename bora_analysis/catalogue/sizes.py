"""Divisors for blocks and Kronecker factors."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from math import gcd, isqrt


def common_divisors(sizes: Iterable[int]) -> tuple[int, ...]:
    """Every b that divides all sizes, ascending.

    >>> common_divisors([768, 512])
    (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """
    common = gcd(*sizes)
    small = [k for k in range(1, isqrt(common) + 1) if common % k == 0]
    return tuple(sorted({*small, *(common // k for k in small)}))


#: What else may be done about a b of BoRA's that does not divide.
PADS = "; or pad the layer (pad=True, --pad, for train --set pad=true), whose rank bound may be lower"


def check_blocks(b: int, shapes: Iterable[tuple[int, int]], more: str = "") -> None:
    """Raise ``ValueError``, with the possible b and ``more``, unless b divides m and n of every shape (m, n)."""
    shapes = list(dict.fromkeys(shapes))
    if b < 1 or any(m % b or n % b for m, n in shapes):
        good = listed(common_divisors(size for shape in shapes for size in shape))
        (m, n), *others = [(m, n) for m, n in shapes if b < 1 or m % b or n % b]
        among = "" if len(shapes) == 1 else f" ({len(others) + 1} of {len(shapes)} shapes)"
        raise ValueError(f"b = {b} does not divide m = {m} and n = {n}{among}; b may be {good}{more}")


def padded_sizes(size: int, b: int) -> tuple[int, ...]:
    """The rows (or columns) of each of b blocks of ⌈size/b⌉, of which the last are cut off at the size.

    >>> padded_sizes(5, 4), padded_sizes(8, 4)
    ((2, 2, 1, 0), (2, 2, 2, 2))
    """
    each = -(-size // b)
    return tuple(min(each, max(0, size - k * each)) for k in range(b))


def padded_bound(m: int, n: int, r: int, b: int) -> int:
    """The rank that almost all factors of a padded BoRA reach, and none exceeds: min(m, n, br) where b divides.

    >>> padded_bound(5, 5, 1, 4), padded_bound(8, 8, 1, 4)
    (3, 4)
    """
    return min(sum(min(own, r) for own in padded_sizes(size, b)) for size in (m, n))


def cheapest_blocks(m: int, n: int) -> int:
    """The b with which BoRA reaches a given rank of an m × n matrix with the fewest parameters; of two, the smaller.

    N(b) = R((m+n)/b + b) for the rank bound R (arXiv 2508.06953, §3.3).

    >>> cheapest_blocks(4096, 4096), cheapest_blocks(1024, 4096)
    (64, 64)
    """
    return min(common_divisors([m, n]), key=lambda b: (m + n) // b + b)


@lru_cache(maxsize=1024)
def divisor_near(size: int, wished: int) -> int:
    """The divisor from 2 on that is nearest to a wished one, of two the smaller, as PEFT's OFT has it.

    >>> divisor_near(4096, 32), divisor_near(36, 5), divisor_near(36, 8), divisor_near(7, 3)
    (32, 4, 9, 7)
    """
    return min((b for b in common_divisors([size]) if b > 1), key=lambda b: abs(b - wished), default=1)


@lru_cache(maxsize=1024)
def kronecker_factors(size: int) -> tuple[int, int]:
    """(small, large) with small · large = size and the smallest difference.

    The same as PEFT's ``factorization(size, -1)``.

    >>> kronecker_factors(4096), kronecker_factors(14336), kronecker_factors(127)
    ((64, 64), (112, 128), (1, 127))
    """
    small = next(k for k in range(isqrt(size), 0, -1) if size % k == 0)
    return small, size // small


def listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
