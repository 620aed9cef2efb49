"""Checks of the arrays that updates are built from."""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from ..catalogue.dtypes import EPSILON
from ..catalogue.sizes import check_blocks as check_divides
from ..linalg import Array
from .contract import FactorError


def check_blocks(b: int, m: int, n: int, more: str = "") -> None:
    """Raise :class:`FactorError`, with the b that would fit and ``more``, unless b divides both m and n."""
    try:
        check_divides(b, [(m, n)], more)
    except ValueError as error:
        raise FactorError("blocks", str(error)) from None


def pair(B: Any, A: Any, dtype: str | None, any_rank: bool = False) -> tuple[Array, Array, str]:
    left, left_dtype = factor("B", B, 2, dtype)
    right, right_dtype = factor("A", A, 2, dtype)
    if left.shape[1] != right.shape[0]:
        raise FactorError("B", f"has shape {left.shape} and A has {right.shape}; expected (m, r) and (r, n)")
    if not any_rank and left.shape[1] > max(left.shape[0], right.shape[1]):
        # With m = n, swapped factors would multiply without complaint and give an r×r "update".
        raise FactorError(
            "B",
            f"has shape {left.shape} and A has {right.shape}: r is above both m and n; "
            "expected (m, r) and (r, n), so they may be swapped",
        )
    return left, right, coarsest((left_dtype, right_dtype))


def factor(name: str, value: Any, ndim: int, stored: str | None) -> tuple[Array, str]:
    """The factor as a finite floating-point array, and the name of the dtype it was stored in."""
    if hasattr(value, "detach"):  # a torch tensor, without importing torch
        value = value.detach().cpu()
        dtype = str(value.dtype).removeprefix("torch.")
        array = value.numpy() if dtype in ("float16", "float32", "float64") else value.double().numpy()
    else:
        array = np.asarray(value)
        if array.dtype.kind in "biu":
            array = array.astype(np.float64)
        dtype = stored or array.dtype.name  # NumPy puts the name together each time
    if array.ndim != ndim or 0 in array.shape:
        raise FactorError(name, f"has shape {array.shape}; expected {ndim} dimensions, none of them empty")
    if array.dtype.kind != "f":
        raise FactorError(name, f"has dtype {array.dtype}; expected floating point")
    if not is_finite(array):
        where = tuple(int(k) for k in np.argwhere(~np.isfinite(array))[0])
        raise FactorError(name, f"holds NaN or Inf (first at index {where})")
    return array, stored or dtype


def is_finite(array: Array) -> bool:
    """Whether every entry is finite. One BLAS pass; the slow test only where the squares overflow."""
    flat = array.ravel(order="K")
    if flat.itemsize == 2:  # no BLAS for these, and float16's squares overflow at 256
        return bool(np.isfinite(flat).all())
    with np.errstate(over="ignore", invalid="ignore"):
        quick = np.dot(flat, flat)
    return isfinite(quick) or bool(np.isfinite(flat).all())


def coarsest(dtypes: Any) -> str:
    """The dtype with the largest spacing."""
    return max(dtypes, key=lambda name: EPSILON.get(name, 0.0))
