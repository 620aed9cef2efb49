"""Singular values of stacks of cores, on the CPU or a GPU, and which solver found them."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np

from ..catalogue.dtypes import EPSILON
from ..extras import available, require
from . import Array, check_finite, normalised
from .threads import BlasLimit

Solver = Literal["auto", "svd", "gram"]
SOLVERS: tuple[str, ...] = get_args(Solver)

#: From this core size on "auto" tries the Gram matrix: 2× faster than svdvals at 512, 3× at 2048 (one CPU thread).
GRAM_FROM = 512
#: From this core size on device "auto" uses a CUDA device, if there is one.
GPU_FROM = 1024
#: From this core size on "auto" finds the small values again where a Gram matrix alone is not enough: half the time of
#: an SVD at 2048, none of it at 1024.
MEND_FROM = 2048
#: The same for numbers that were rounded when they were stored, of which fewer have to be found: half the time of an
#: SVD from 512 on, but SciPy has to be imported.
MEND_ROUNDED_FROM = 1024
#: From this size on the eigenvalues of a Gram matrix come from torch's LAPACK, which is MKL on x86 and 1.6× as fast as
#: NumPy's at 4096; at 2048 it is not.
TORCH_FROM = 3072


@dataclass(frozen=True, eq=False)
class Solved:
    values: Array  # (k, min(p, q))
    solver: str
    device: str


def resolve(solver: str, device: str) -> str:
    """Check the two choices; give the device to use: ``auto``, ``cpu`` or ``cuda:k``."""
    if solver not in SOLVERS:
        raise ValueError(f"solver {solver!r} is unknown; expected one of {', '.join(SOLVERS)}")
    if device in ("auto", "cpu"):
        return device
    if device.partition(":")[0] != "cuda" or (":" in device and not device.partition(":")[2].isdigit()):
        raise ValueError(f"device {device!r} is unknown; expected auto, cpu, cuda or cuda:k")
    require("torch", f"device {device!r}", "torch", error=ValueError)
    import torch

    index = int(device.partition(":")[2] or 0)
    if index >= torch.cuda.device_count():
        raise ValueError(f"device {device!r} was asked for, but torch sees {torch.cuda.device_count()} CUDA devices")
    return f"cuda:{index}"


def solve(stack: Array, dtype: str, solver: str, place: str) -> Solved:
    """Singular values of a stack (k, p, q) of cores."""
    if stack.shape[1:] == (1, 1) and solver != "gram":  # singular values that a structure knows by itself
        return Solved(np.abs(stack[:, 0]), "svd", "cpu")
    if not stack.any():
        return Solved(np.zeros((len(stack), min(stack.shape[1:]))), "gram" if solver == "gram" else "svd", "cpu")
    place = place_of(stack.shape[1:], place)
    power = np.zeros((len(stack), 1), dtype=int)
    top = np.maximum(stack.max(axis=(1, 2)), -stack.min(axis=(1, 2)))
    far = (top > 0) & ~((top > 1e-60) & (top < 1e60))  # whose squares would leave the range
    if far.any():
        stack = stack.copy()
        stack[far], powers = normalised(stack[far], (1, 2))
        power[far] = powers[:, 0]
    solved = solve_cpu(stack, dtype, solver) if place == "cpu" else solve_torch(stack, dtype, solver, place)
    return replace(solved, values=np.ldexp(solved.values, power))


def place_of(shape: tuple[int, ...], place: str) -> str:
    """Where a core of this shape is solved."""
    if place != "auto":
        return place
    if min(shape) < GPU_FROM or not available("torch"):
        return "cpu"
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def wants_gram(stack: Array, dtype: str, solver: str) -> bool:
    size = min(stack.shape[1:])
    hopeful = EPSILON.get(dtype, 0.0) > size * EPSILON["float64"]  # otherwise `gram_suffices` cannot be true
    return solver == "gram" or (solver == "auto" and size >= GRAM_FROM and hopeful)


def gram_suffices(values: Array, dtype: str, solver: str) -> bool:
    """Whether the error of the values from a Gram matrix stays below the rounding of the stored factors.

    The eigenvalues λ = σ² are off by at most about p·ε·σ₁², so σ is off by p·ε·σ₁²/σ: harmless while that is below
    ε_stored·σ₁. Always true for half-precision factors of any sensible condition, never for float64 ones. And no σ may
    be so small that it could be 0: the rank is that of what is stored.
    """
    if solver == "gram":
        return True
    top, least = values.max(axis=-1), values.min(axis=-1)
    unit = values.shape[-1] * EPSILON["float64"]
    return bool(np.all((least * EPSILON.get(dtype, 0.0) >= unit * top) & (least >= 4 * np.sqrt(unit) * top)))


def solve_cpu(stack: Array, dtype: str, solver: str) -> Solved:
    wide = stack if stack.shape[1] <= stack.shape[2] else stack.transpose(0, 2, 1)
    size = wide.shape[1]
    rounded = EPSILON.get(dtype, 0.0) > EPSILON["float64"]
    mends = solver == "auto" and size >= (MEND_ROUNDED_FROM if rounded else MEND_FROM)
    if wants_gram(stack, dtype, solver) and not mends:
        with suppress(np.linalg.LinAlgError, RuntimeError):  # NumPy's and torch's, where they do not converge
            values = np.sqrt(np.maximum(eigenvalues(wide @ wide.transpose(0, 2, 1)), 0.0))
            if gram_suffices(values, dtype, solver):
                return Solved(values, "gram", "cpu")
    if mends:
        solved = [_mended(core, dtype) for core in wide]
        return Solved(np.stack([values for values, _ in solved]), max((name for _, name in solved), key=len), "cpu")
    return Solved(*svd_values(stack), "cpu")


def _mended(core: Array, dtype: str) -> tuple[Array, str]:
    """The values of one large core (p, q), p ≤ q, and how they were found."""
    from .tail import allowed, from_gram  # here: it imports scipy

    stored = EPSILON.get(dtype, EPSILON["float64"])
    found = from_gram(core, lambda values: gram_suffices(values, dtype, "auto"), allowed(stored))
    if found is not None:
        values, again = found
        return values, "gram (mended)" if again else "gram"
    values, name = svd_values(core[None])
    return values[0], name


def eigenvalues(stack: Array) -> Array:
    """Eigenvalues of symmetric matrices (k, p, p), ascending."""
    if stack.shape[-1] < TORCH_FROM or not available("torch"):
        return np.linalg.eigvalsh(stack)
    import torch

    BlasLimit.reach_torch()
    return torch.linalg.eigvalsh(torch.from_numpy(stack)).numpy()


def solve_torch(stack: Array, dtype: str, solver: str, device: str) -> Solved:
    """The same through torch on ``device``, float64.

    Out of memory: smaller chunks, then the CPU. A solver that does not converge: the next driver, then the CPU.
    The result says which.
    """
    import torch
    from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

    def run(chunk: Array) -> tuple[Array, str]:
        cores = torch.from_numpy(np.ascontiguousarray(chunk)).to(device)
        if wants_gram(chunk, dtype, solver):
            wide = cores if cores.shape[1] <= cores.shape[2] else cores.mT
            values = torch.linalg.eigvalsh(wide @ wide.mT).clamp_min(0.0).sqrt().cpu().numpy()
            if gram_suffices(values, dtype, solver):
                return values, "gram"
        try:
            return torch.linalg.svdvals(cores).cpu().numpy(), "svd"
        except LinAlgError:
            driver = "gesvd" if cores.is_cuda else None  # torch takes a driver on CUDA only
            return torch.linalg.svdvals(cores, driver=driver).cpu().numpy(), "svd (gesvd)"

    with ONE_AT_A_TIME:
        size = len(stack)
        while True:
            try:
                parts = [run(stack[i : i + size]) for i in range(0, len(stack), size)]
                used = max((name for _, name in parts), key=len)
                return Solved(np.concatenate([values for values, _ in parts]), used, device)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                if size > 1:
                    size = -(-size // 2)
                    continue
                reason = "out of memory"
            except LinAlgError:
                reason = "no convergence"
            break
    solved = solve_cpu(stack, dtype, solver)
    return Solved(solved.values, solved.solver, f"cpu ({device}: {reason})")


ONE_AT_A_TIME = threading.Lock()  # the workers share one GPU: in turn, so that its memory holds one batch


def svd_values(stack: Array) -> tuple[Array, str]:
    """Singular values (k, min(p, q)) of a stack (k, p, q), descending, and the name of the solver that found them.

    LAPACK's gesdd does not converge on some finite matrices, rank-deficient ones among them; its older sibling gesvd
    then does. The transpose and other rounding are the last resort.
    """
    try:
        return np.linalg.svd(stack, compute_uv=False), "svd"
    except np.linalg.LinAlgError:
        if len(stack) > 1:  # the others get what they would alone
            parts = [svd_values(core[None]) for core in stack]
            return np.concatenate([values for values, _ in parts]), max((name for _, name in parts), key=len)
        (_, values, _), name = _sturdy(stack[0])
        return values[None], name


def svd_with_vectors(core: Array) -> tuple[Array, Array, Array]:
    """U (p, k), σ (k,) descending and V (k, q) of one matrix, k = min(p, q); for the drivers see :func:`svd_values`."""
    core, power = normalised(check_finite(core))  # LAPACK's own scaling rounds
    try:
        U, values, V = np.linalg.svd(core, full_matrices=False)
    except np.linalg.LinAlgError:
        U, values, V = _sturdy(core)[0]
    return U, np.ldexp(values, power.item()), V


def _sturdy(core: Array) -> tuple[tuple[Array, Array, Array], str]:
    from scipy.linalg import svd  # here: importing it takes longer than --help may

    BlasLimit.reach_scipy()
    try:
        U, values, V = svd(core, full_matrices=False, lapack_driver="gesvd")
        return (U, values, V), "svd (gesvd)"
    except np.linalg.LinAlgError:
        V, values, U = svd(np.ascontiguousarray(core.T), full_matrices=False)
        return (U.T, values, V.T), "svd (transpose)"
