"""Triangles on a GPU, through torch: the factors are sent once, and what comes back is as large as the core."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import Array
from .solvers import ONE_AT_A_TIME, place_of

#: Columns from which on sending X takes less time than a core needs for XᵀX: at 6 GB/s and 50 GFLOP/s four times less.
#: By that estimate; not measured. Where "auto" may choose, the limit is that of the cores, or torch's import is lost.
_FROM = 128
_place: ContextVar[str] = ContextVar("place", default="cpu")


@contextmanager
def triangles_at(place: str) -> Iterator[None]:
    """In the block, in this thread: ``auto``, ``cpu`` or ``cuda:k`` for large triangles."""
    token = _place.set(place)
    try:
        yield
    finally:
        _place.reset(token)


def device_for(shape: tuple[int, ...]) -> str:
    """Where the triangle of X (…, p, r) is found, from what :func:`triangles_at` says."""
    r, place = shape[-1], _place.get()
    if r < _FROM or place == "cpu":
        return "cpu"
    return place_of((r, r), place)


def cholesky_of(stack: Array, rows: int, device: str) -> tuple[Array, Array, NDArray[np.bool_], Array] | None:
    """R (b, r, r) with RᵀR = XᵀX; the squares of the columns' lengths (b, r); where XᵀX is positive definite (b,);
    ‖T⁻¹‖_F (b,), see :func:`.qr.from_gram`. None where the device has too little memory.

    Parameters
    ----------
    stack : X (b, p, r), of a type that torch knows. rows : that one Gram matrix sums up.

    Examples
    --------
    >>> R, squares, definite, grown = cholesky_of(np.array([[[3.0, 0.0], [4.0, 2.0]]]), 512, "cpu")
    >>> R[0].round(12).tolist(), squares.tolist(), definite.tolist()
    ([[5.0, 1.6], [0.0, 1.2]], [[25.0, 4.0]], [True])
    """
    import torch

    try:
        with ONE_AT_A_TIME:
            X: Any = torch.from_numpy(np.ascontiguousarray(stack)).to(device).double()
            gram: Any = sum(part.mT @ part for part in X.split(rows, dim=1))
            squares = gram.diagonal(dim1=1, dim2=2)
            lengths = squares.sqrt()
            L, failed = torch.linalg.cholesky_ex(gram / (lengths[:, :, None] * lengths[:, None, :]))
            unit = torch.eye(L.shape[-1], dtype=L.dtype, device=device)
            grown = torch.linalg.solve_triangular(L, unit.expand_as(L), upper=False).norm(dim=(1, 2))
            R = L.mT * lengths[:, None, :]
            R, squares, definite, grown = (each.cpu().numpy() for each in (R, squares, failed == 0, grown))
            return R, squares, definite, grown
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None
