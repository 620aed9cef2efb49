"""Singular values of one update or of many, through cores, never through ΔW.

The factors are reduced to cores on the CPU (QR, float64). Cores of equal shape are batched and solved on the CPU or,
where they are large and there is one, on a GPU. Modules run in parallel with one BLAS thread each: many small
decompositions through a multi-threaded BLAS were measured 50× slower when another process used the same cores.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .counting import Counted, count
from .delta import EPSILON, Array, Blocked, Dense, Facts, Update
from .extras import available, require
from .metrics import numerical_rank, rounding_tolerance

Solver = Literal["auto", "svd", "gram"]
SOLVERS: tuple[str, ...] = get_args(Solver)

#: From this core size on "auto" tries the Gram matrix: 2× faster than svdvals at 512, 3× at 2048 (one CPU thread).
GRAM_FROM = 512
#: From this core size on device "auto" uses a CUDA device, if there is one.
GPU_FROM = 1024
#: From this size on the eigenvalues of a Gram matrix come from torch's LAPACK, which is MKL on x86 and 1.6× as fast as
#: NumPy's at 4096; at 2048 it is not.
TORCH_FROM = 3072
#: Updates without structure are made and solved one by one, as many at a time as fit here (but one at least).
ROOM_BYTES = 2 << 30
#: From this size on a quick analysis of an update without structure counts instead of solving.
COUNT_FROM = 256
#: Cores of one shape are collected up to this size, or from this many modules, before they are solved together.
BATCH_BYTES = 2 << 20
BATCH_MODULES = 64


@dataclass(frozen=True, eq=False)
class Spectrum:
    """Singular values of one update, with how they were found.

    Attributes
    ----------
    values : (rank_bound,) float64, descending. ΔW's other min(m, n) − rank_bound singular values are exactly 0.
    solver : ``"svd"``, ``"gram"``, ``"svd (gesvd)"`` where the first driver did not converge, or ``"count"``.
    device : where the cores were solved: ``"cpu"``, ``"cuda:0"``, or ``"cpu (cuda:0: reason)"`` after a fall-back.
    dtype : the dtype in which the factors were stored. The computation is always in float64.
    noise_floor : the σ that rounding alone makes, for a difference of rounded weights; NaN otherwise.
    counted : what a quick analysis found instead of the values, which are then empty.
    """

    values: NDArray[np.float64]
    solver: str
    device: str
    dtype: str
    noise_floor: float = float("nan")
    counted: Counted | None = None

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return self.values.size


@dataclass(frozen=True)
class FactorRanks:
    """Numerical ranks of B', Σ', A' (eq. 6), side by side, and what they say about rank(ΔW).

    ``bound`` is Proposition 1's min(m, n, br). ``upper`` = min of the three ranks always holds and is tighter.
    ``lower`` = rank(B') + rank(Σ') + rank(A') − 2br (Sylvester, at least 0) always holds too.
    """

    B: int
    sigma: int
    A: int
    bound: int
    upper: int
    lower: int

    @property
    def limiting(self) -> tuple[str, ...]:
        """The factors whose rank is the smallest of the three."""
        ranks = {"B'": self.B, "Σ'": self.sigma, "A'": self.A}
        return tuple(name for name, rank in ranks.items() if rank == self.upper)


def singular_values(update: Update, *, solver: str = "auto", device: str = "auto") -> Spectrum:
    """Singular values of one update.

    Parameters
    ----------
    update : from :func:`lora`, :func:`melora`, :func:`bora` or an adapter.
    solver : ``"svd"`` is within 1e-12·‖B'‖‖Σ'‖‖A'‖ of the exact values. ``"gram"`` takes square roots of the
        eigenvalues of C Cᵀ: faster for large cores, absolute error up to about 1e-8·σ₁ for the small values.
        ``"auto"`` uses gram for cores from 512 on when its error bound stays below the rounding of the stored
        factors, and svd otherwise.
    device : ``"auto"`` (a GPU for cores from 1024 on, if there is one), ``"cpu"``, ``"cuda"`` or ``"cuda:k"``.

    Raises
    ------
    ValueError
        Unknown solver or device, or a CUDA device that torch does not see.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora, singular_values
    >>> spectrum = singular_values(lora(np.eye(4)[:, :2] * [3.0, 2.0], np.eye(2, 5)))
    >>> spectrum.values.round(12).tolist(), spectrum.dtype
    ([3.0, 2.0], 'float64')
    """
    place = _resolve(solver, device)
    facts = update.facts
    # One thread for a large core too: two are 1.5× as fast on idle cores, and were 20× slower on busy ones.
    with one_blas_thread():
        if isinstance(update, Dense):
            return _dense_spectrum(update, solver, place)
        return _union([_solve(core, facts.dtype, solver, place) for core in update.cores()], facts)


def each_spectrum(
    updates: Mapping[str, Update],
    *,
    solver: str = "auto",
    device: str = "auto",
    workers: int | None = None,
    quick: float | None = None,
) -> Generator[tuple[str, Facts, Spectrum]]:
    """Singular values of many updates, as they are finished (in no particular order).

    Memory: a few modules' factors at a time, at most a few batches of cores, and dense updates up to ``ROOM_BYTES``.

    Parameters
    ----------
    updates : module → update; ``updates[module]`` is called in a worker thread, once.
    solver, device : as for :func:`singular_values`.
    workers : threads; default one per core that this process may use.
    quick : a threshold: of updates without structure, from 256² on, only how many σ lie above it, Σσ², Σσ⁴ and σ₁
        (:func:`bora_analysis.counting.count`); all σ where that cannot tell.
    """
    place = _resolve(solver, device)
    workers = workers or available_cores()
    names = iter(updates)
    facts_of: dict[str, Facts] = {}
    missing: dict[str, int] = {}  # cores of a module not yet solved
    found: dict[str, list[_Solved]] = defaultdict(list)
    groups: dict[tuple[int, int, str], list[tuple[str, Array]]] = defaultdict(list)
    reducing: set[Future[Any]] = set()
    solving: dict[Future[Any], list[tuple[str, int]]] = {}

    def reduce(name: str) -> tuple[str, Facts, list[Array] | Spectrum]:
        update = updates[name]
        if isinstance(update, Dense):
            return name, update.facts, _dense_spectrum(update, solver, place, quick)
        return name, update.facts, update.cores()

    def submit(key: tuple[int, int, str], members: list[tuple[str, Array]]) -> None:
        stack = np.concatenate([core for _, core in members])
        owners = [(name, len(core)) for name, core in members]
        solving[pool.submit(_solve, stack, key[2], solver, place)] = owners

    with one_blas_thread(), ThreadPoolExecutor(workers, thread_name_prefix="spectrum") as pool:
        try:
            more = True
            while more or reducing or solving or groups:
                while more and len(reducing) < 2 * workers and len(solving) < 4 * workers:
                    name = next(names, None)
                    if name is None:
                        more = False
                    else:
                        reducing.add(pool.submit(reduce, name))
                if not more and not reducing:
                    for key, members in groups.items():  # the last, unfilled batches: shared among the workers
                        step = -(-len(members) // workers)
                        for start in range(0, len(members), step):
                            submit(key, members[start : start + step])
                    groups.clear()
                done, _ = wait([*reducing, *solving], return_when=FIRST_COMPLETED)
                for future in done & reducing:
                    reducing.discard(future)
                    name, facts, cores = future.result()
                    if isinstance(cores, Spectrum):
                        yield name, facts, cores
                        continue
                    facts_of[name] = facts
                    missing[name] = sum(len(core) for core in cores)
                    for core in cores:
                        key = (*core.shape[1:], facts_of[name].dtype)
                        groups[key].append((name, core))
                        waiting = groups[key]
                        if len(waiting) >= BATCH_MODULES or sum(stack.nbytes for _, stack in waiting) >= BATCH_BYTES:
                            submit(key, groups.pop(key))
                for future in [future for future in done if future in solving]:
                    owners, solved = solving.pop(future), future.result()
                    start = 0
                    for name, count in owners:
                        found[name].append(_Solved(solved.values[start : start + count], solved.solver, solved.device))
                        start += count
                        missing[name] -= count
                    for name in {name for name, _ in owners if not missing[name]}:
                        facts = facts_of.pop(name)
                        del missing[name]
                        yield name, facts, _union(found.pop(name), facts)
        finally:  # an error, or a caller that stops early: drop what has not begun
            pool.shutdown(wait=True, cancel_futures=True)


def factor_ranks(update: Update) -> FactorRanks:
    """Numerical ranks of B', Σ' and A': which of the three limits the rank of ΔW (eq. 6, Proposition 1).

    rank(Σ') is found as Σ_k rank(S_k), r small b×b problems instead of one of size br. The tolerance is that of
    :func:`bora_analysis.metrics.rounding_tolerance`.

    Raises
    ------
    ValueError
        An update that is no product of three such factors; :class:`bora_analysis.delta.Blocked` are those that are.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import bora, factor_ranks, lora
    >>> rng = np.random.default_rng(0)
    >>> B, A = rng.standard_normal((8, 2)), rng.standard_normal((2, 8))
    >>> factor_ranks(lora(B, A)).sigma, factor_ranks(bora(B, A, rng.standard_normal((4, 4, 2)))).sigma
    (2, 8)
    """
    if not isinstance(update, Blocked):
        raise ValueError(f"{update.facts.method} has no B', Σ', A' (eq. 6): its update is no product of block factors")
    left, right = update.factor_cores()
    slots = update.slots()
    with one_blas_thread():
        B, sigma, A = (_rank(stacks, update.facts.dtype) for stacks in (left, [slot[None] for slot in slots], right))
    inner = sum(len(slot) for slot in slots)
    lower = max(0, B + sigma + A - 2 * inner)
    return FactorRanks(B, sigma, A, update.facts.rank_bound, min(B, sigma, A), lower)


def available_cores() -> int:
    """Processors that this process may use (not those of the machine)."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True, eq=False)
class _Solved:
    values: Array  # (k, min(p, q))
    solver: str
    device: str


def _union(parts: list[_Solved], facts: Facts) -> Spectrum:
    values = np.sort(np.concatenate([part.values.ravel() for part in parts]))[::-1][: facts.rank_bound]
    # What was used for the largest cores speaks for the whole.
    solver, device = max(((part.solver, part.device) for part in parts), key=lambda pair: (len(pair[1]), pair[0]))
    return Spectrum(np.ascontiguousarray(values), solver, device, facts.dtype)


def _dense_spectrum(update: Dense, solver: str, place: str, quick: float | None = None) -> Spectrum:
    """The spectrum of an update without structure, which is in memory only while it is solved."""
    facts = update.facts
    with _Room.taken(32 * facts.out_features * facts.in_features):  # itself, what it is made of, LAPACK's copy
        matrix = update.to_dense()
        spectrum = None
        if quick is not None and min(matrix.shape) >= COUNT_FROM:
            counted, where = _count(matrix, quick, _place(matrix.shape, place))
            if counted is not None:
                spectrum = Spectrum(np.zeros(0), "count", where, facts.dtype, counted=counted)
        if spectrum is None:
            spectrum = _union([_solve(matrix[None], facts.dtype, solver, place)], facts)
    return replace(spectrum, noise_floor=update.noise_floor()) if update.noise_floor else spectrum


def _count(matrix: Array, threshold: float, place: str) -> tuple[Counted | None, str]:
    """The count, and where it was taken."""
    if place == "cpu":
        return count(matrix, threshold), place
    import torch

    try:
        with _ONE_AT_A_TIME:
            return count(matrix, threshold, place), place
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return count(matrix, threshold), f"cpu ({place}: out of memory)"


def _rank(stacks: list[Array], dtype: str) -> int:
    values = np.concatenate([np.linalg.svd(stack, compute_uv=False).ravel() for stack in stacks])
    return numerical_rank(values, rounding_tolerance(values, dtype))


def _resolve(solver: str, device: str) -> str:
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


def _solve(stack: Array, dtype: str, solver: str, place: str) -> _Solved:
    """Singular values of a stack (k, p, q) of cores."""
    if stack.shape[1:] == (1, 1) and solver != "gram":  # singular values that a structure knows by itself
        return _Solved(np.abs(stack[:, 0]), "svd", "cpu")
    if not stack.any():
        return _Solved(np.zeros((len(stack), min(stack.shape[1:]))), "gram" if solver == "gram" else "svd", "cpu")
    place = _place(stack.shape[1:], place)
    if place == "cpu":
        return _solve_cpu(stack, dtype, solver)
    return solve_torch(stack, dtype, solver, place)


def _place(shape: tuple[int, ...], place: str) -> str:
    """Where a core of this shape is solved."""
    if place != "auto":
        return place
    if min(shape) < GPU_FROM or not available("torch"):
        return "cpu"
    import torch

    return "cuda:0" if torch.cuda.is_available() else "cpu"


def _wants_gram(stack: Array, dtype: str, solver: str) -> bool:
    size = min(stack.shape[1:])
    hopeful = EPSILON.get(dtype, 0.0) > size * EPSILON["float64"]  # otherwise `_gram_suffices` cannot be true
    return solver == "gram" or (solver == "auto" and size >= GRAM_FROM and hopeful)


def _gram_suffices(values: Array, dtype: str, solver: str) -> bool:
    """Whether the error of the values from a Gram matrix stays below the rounding of the stored factors.

    The eigenvalues λ = σ² are off by at most about p·ε·σ₁², so σ is off by p·ε·σ₁²/σ: harmless while that is below
    ε_stored·σ₁. Always true for half-precision factors of any sensible condition, never for float64 ones.
    """
    if solver == "gram":
        return True
    top, least = values.max(axis=-1), values.min(axis=-1)
    return bool(np.all(least * EPSILON.get(dtype, 0.0) >= values.shape[-1] * EPSILON["float64"] * top))


def _solve_cpu(stack: Array, dtype: str, solver: str) -> _Solved:
    if _wants_gram(stack, dtype, solver):
        wide = stack if stack.shape[1] <= stack.shape[2] else stack.transpose(0, 2, 1)
        values = np.sqrt(np.maximum(_eigenvalues(wide @ wide.transpose(0, 2, 1)), 0.0))
        if _gram_suffices(values, dtype, solver):
            return _Solved(values, "gram", "cpu")
    try:
        return _Solved(np.linalg.svd(stack, compute_uv=False), "svd", "cpu")
    except np.linalg.LinAlgError:  # LAPACK's gesdd did not converge: its older, sturdier sibling
        from scipy.linalg import svd

        values = np.stack([svd(core, compute_uv=False, lapack_driver="gesvd") for core in stack])
        return _Solved(values, "svd (gesvd)", "cpu")


def _eigenvalues(stack: Array) -> Array:
    """Eigenvalues of symmetric matrices (k, p, p), ascending."""
    if stack.shape[-1] < TORCH_FROM or not available("torch"):
        return np.linalg.eigvalsh(stack)
    import torch

    _BlasLimit.reach_torch()
    return torch.linalg.eigvalsh(torch.from_numpy(stack)).numpy()


def solve_torch(stack: Array, dtype: str, solver: str, device: str) -> _Solved:
    """The same through torch on ``device``, float64.

    Out of memory: smaller chunks, then the CPU. A solver that does not converge: the next driver, then the CPU.
    The result says which.
    """
    import torch
    from torch.linalg import LinAlgError  # pyright: ignore[reportAttributeAccessIssue]

    def run(chunk: Array) -> tuple[Array, str]:
        cores = torch.from_numpy(np.ascontiguousarray(chunk)).to(device)
        if _wants_gram(chunk, dtype, solver):
            wide = cores if cores.shape[1] <= cores.shape[2] else cores.mT
            values = torch.linalg.eigvalsh(wide @ wide.mT).clamp_min(0.0).sqrt().cpu().numpy()
            if _gram_suffices(values, dtype, solver):
                return values, "gram"
        try:
            return torch.linalg.svdvals(cores).cpu().numpy(), "svd"
        except LinAlgError:
            driver = "gesvd" if cores.is_cuda else None  # torch takes a driver on CUDA only
            return torch.linalg.svdvals(cores, driver=driver).cpu().numpy(), "svd (gesvd)"

    with _ONE_AT_A_TIME:
        size = len(stack)
        while True:
            try:
                parts = [run(stack[i : i + size]) for i in range(0, len(stack), size)]
                used = max((name for _, name in parts), key=len)
                return _Solved(np.concatenate([values for values, _ in parts]), used, device)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                if size > 1:
                    size = -(-size // 2)
                    continue
                reason = "out of memory"
            except LinAlgError:
                reason = "no convergence"
            break
    solved = _solve_cpu(stack, dtype, solver)
    return _Solved(solved.values, solved.solver, f"cpu ({device}: {reason})")


class _Room:
    """Bytes of dense updates that are at work in this process."""

    free = threading.Condition()
    used = 0

    @classmethod
    @contextmanager
    def taken(cls, size: int) -> Iterator[None]:
        with cls.free:
            cls.free.wait_for(lambda: cls.used == 0 or cls.used + size <= ROOM_BYTES)
            cls.used += size
        try:
            yield
        finally:
            with cls.free:
                cls.used -= size
                cls.free.notify_all()


_ONE_AT_A_TIME = threading.Lock()  # the workers share one GPU: in turn, so that its memory holds one batch


class _BlasLimit:
    """The limit in force, and how many callers rely on it.

    The limit is a setting of the whole process, so the last caller to leave, and not the first, must lift it. Where
    that is another thread than the one that set it, threadpoolctl (≥ 3.7) may decline, and BLAS stays at one thread:
    only a process with several threads in here at once, such as a server, can come to that, and one thread each is
    what it wants.
    """

    lock = threading.Lock()
    users = 0
    limiter: Any = None
    torch_threads: int | None = None  # those before

    @classmethod
    def reach_torch(cls) -> None:
        """Limit torch too, whose BLAS threadpoolctl does not see, where a limit is in force."""
        import torch

        with cls.lock:
            if cls.users and cls.torch_threads is None:
                cls.torch_threads = torch.get_num_threads()
                torch.set_num_threads(1)

    @classmethod
    def lift(cls) -> None:
        cls.limiter.restore_original_limits()
        cls.limiter = None
        if cls.torch_threads is not None:
            import torch

            torch.set_num_threads(cls.torch_threads)
            cls.torch_threads = None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One BLAS thread in this process while the block runs, torch's too from its first use in there.

    Safe to nest and to enter from several threads.
    """
    import scipy.linalg  # noqa: F401  its BLAS must be loaded to be limited
    from threadpoolctl import threadpool_limits

    with _BlasLimit.lock:
        if _BlasLimit.users == 0:
            _BlasLimit.limiter = threadpool_limits(1, user_api="blas")
        _BlasLimit.users += 1
    try:
        yield
    finally:
        with _BlasLimit.lock:
            _BlasLimit.users -= 1
            if _BlasLimit.users == 0:
                _BlasLimit.lift()
