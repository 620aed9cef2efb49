"""Singular values of one update or of many, through cores, never through ΔW.

The factors are reduced to cores in float64 (:mod:`bora_analysis.linalg.qr`). Cores of equal shape are batched and
solved. Both happens on the CPU or, where they are large and there is one, on a GPU. Modules run in parallel with one
BLAS thread each.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple, Unpack, overload

import numpy as np
from numpy.typing import NDArray

from ..adapters.given import one_of
from ..adapters.reading import Options
from ..cards import card
from ..catalogue.dtypes import EPSILON
from ..files.errors import counted
from ..linalg import Array, check_finite, norm, normalised
from ..linalg.gpu_triangles import triangles_at
from ..linalg.inertia import Counted, count
from ..linalg.solvers import ONE_AT_A_TIME, Solved, place_of, resolve, solve, svd_values
from ..linalg.threads import available_cores, one_blas_thread
from ..metrics import energy_rank, numerical_rank, rounding_tolerance, spectral_norm
from ..threshold import Threshold
from ..updates.contract import Blocked, Facts, Update
from ..updates.dense import Dense
from ..updates.sums import BlockProduct, Light, measured

#: Updates without structure are made and solved one by one, as many at a time as fit here (but one at least).
ROOM_BYTES = 2 << 30
#: From this size on a quick analysis of an update without structure counts instead of solving.
COUNT_FROM = 256
#: The same of a core: a third of the time of solving at 1024, none of it at 512.
COUNT_CORE_FROM = 1024
#: A worker takes modules until it has so many, what it keeps of them is so large, or so much time has gone, and then
#: solves their cores together: a call for each small module, and a thread that waits for it, took longer than the work.
#: Modules with factors below a megabyte are left to one worker, a millisecond each: two threads that took turns in the
#: Python needed 1.3 times as long for 1024², r = 8, and 1.1 times for 4096², r = 16; for r = 32 0.8. So are those that
#: one batch holds all.
BATCH_BYTES = 4 << 20
BATCH_MODULES = 64
BATCH_SECONDS = 0.02
_SMALL_BYTES = 1 << 20


@dataclass(frozen=True, eq=False, repr=False)
class Spectrum:
    """Singular values of one update, with how they were found.

    Attributes
    ----------
    values : (rank_bound,) float64, descending. ΔW's other min(m, n) − rank_bound singular values are exactly 0.
    solver : ``"svd"``, ``"gram"``, ``"gram (mended)"`` where the small values were found again
        (:mod:`bora_analysis.linalg.tail`), ``"svd (gesvd)"`` where the first driver did not converge, or ``"count"``.
    device : where the cores were solved: ``"cpu"``, ``"cuda:0"``, or ``"cpu (cuda:0: reason)"`` after a fall-back.
    dtype : the dtype in which the factors were stored. The computation is always in float64.
    noise_floor : the largest σ that rounding of what is stored can be expected to make; NaN where that is not known.
    counted : what a quick analysis found instead of the values, which are then empty.
    reach : the size that rounding is relative to, see :func:`bora_analysis.metrics.rounding_tolerance`.
    underflows : whether the values are 0 only because float64 holds nothing so small; the factors are not 0.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import lora, singular_values
    >>> from bora_analysis.metrics import stable_rank
    >>> spectrum = singular_values(lora(np.eye(4)[:, :2] * [2.0, 1.0], np.eye(2, 5)))
    >>> spectrum, stable_rank(spectrum)
    (<Spectrum of 2 singular values, σ₁ = 2: svd on cpu>, 1.25)
    """

    values: NDArray[np.float64]
    solver: str
    device: str
    dtype: str
    noise_floor: float = float("nan")
    counted: Counted | None = None
    reach: float | None = None
    underflows: bool = False

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return self.values.size

    def __repr__(self) -> str:
        top = f", σ₁ = {self.values[0]:.4g}" if len(self) else ""
        return f"<Spectrum of {counted(len(self), 'singular value')}{top}: {self.solver} on {self.device}>"

    def _repr_html_(self) -> str:
        return card(self, self._told)

    def _told(self) -> tuple[list[str], Any]:
        import pandas as pd

        told = f"99 % of the energy lies in {energy_rank(self.values, 0.99)} of them." if len(self) else ""
        return [told], pd.DataFrame({"index": range(1, len(self) + 1), "singular_value": self.values})


@dataclass(frozen=True, eq=False)
class Stack:
    """What metrics look at, of spectra with as many values each, a row a spectrum.

    Attributes
    ----------
    kept : what several metrics begin with, by the function that computes it; nobody changes these arrays.
    """

    values: NDArray[np.float64]
    noise_floor: NDArray[np.float64]
    reach: NDArray[np.float64]
    kept: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, spectra: Sequence[Spectrum]) -> Stack:
        reaches = [spectral_norm(each) if each.reach is None else each.reach for each in spectra]
        return cls(
            np.stack([each.values for each in spectra]),
            np.array([each.noise_floor for each in spectra]),
            np.array(reaches),
        )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return np.array(self.values, dtype=dtype, copy=copy)


@dataclass(frozen=True)
class FactorRanks:
    """Numerical ranks of B', Σ', A' (eq. 6), side by side, and what they say about rank(ΔW).

    ``bound`` is Proposition 1's min(m, n, br). ``upper`` = min of the three ranks always holds and is tighter.
    ``lower`` = rank(B') + rank(Σ') + rank(A') − 2br (Sylvester, at least 0) always holds too.

    Examples
    --------
    >>> import numpy as np
    >>> from bora_analysis import factor_ranks, lora
    >>> ranks = factor_ranks(lora(np.ones((4, 2)), np.eye(2, 4)))
    >>> ranks.B, ranks.A, ranks.limiting
    (1, 2, ("B'",))
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


@overload
def singular_values(  # pyright: ignore[reportOverlappingOverload]
    update: Update, *, solver: str = "auto", device: str = "auto"
) -> Spectrum: ...
@overload
def singular_values(
    update: object, *, solver: str = "auto", device: str = "auto", **reading: Unpack[Options]
) -> dict[str, Spectrum]: ...
def singular_values(update: Any, *, solver: str = "auto", device: str = "auto", **reading: Unpack[Options]) -> Any:
    """Singular values of one update, or of each in an adapter.

    Parameters
    ----------
    update : from :func:`lora`, :func:`melora`, :func:`bora` or an adapter; or an adapter, as for
        :func:`bora_analysis.read_adapter`, whose options ``reading`` are.
    solver : ``"svd"`` is within 1e-12·‖B'‖‖Σ'‖‖A'‖ of the exact values. ``"gram"`` takes square roots of the
        eigenvalues of C Cᵀ: faster for large cores, absolute error up to about 1e-8·σ₁ for the small values.
        ``"auto"`` uses gram for cores from 512 on when its error bound stays below the rounding of the stored
        factors, and from 1024 on also where its small values can be found again to within a hundredth of that
        rounding, at most 1e-9·σ₁ (of float64 from 2048 on, to within 5e-13·σ₁). Otherwise it uses svd.
    device : ``"auto"`` (a GPU for cores and factors of 1024 columns on, if there is one), ``"cpu"``, ``"cuda"`` or
        ``"cuda:k"`` (for all cores, and factors of 128 columns on).

    Returns
    -------
    Spectrum, or module → Spectrum for an adapter

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
    if not hasattr(update, "cores"):
        adapter = one_of(update, **reading)
        found = {module: spectrum for module, _, spectrum in each_spectrum(adapter, solver=solver, device=device)}
        return {module: found[module] for module in adapter}
    place = resolve(solver, device)
    facts = update.facts
    # One thread for a large core too: two are 1.5× as fast on idle cores, and were 20× slower on busy ones.
    with one_blas_thread():
        if isinstance(update, Dense):
            return _dense_spectrum(update, solver, place)
        with triangles_at(place):
            known = _reduced(update)
        return _union([solve(core, facts.dtype, solver, place) for core in known.cores], facts, known)


def each_spectrum(
    updates: Mapping[str, Update],
    *,
    solver: str = "auto",
    device: str = "auto",
    workers: int | None = None,
    quick: float | str | Threshold | None = None,
) -> Generator[tuple[str, Facts, Spectrum]]:
    """Singular values of many updates, as they are finished (in no particular order).

    Memory: a few modules' factors at a time, at most a few batches of cores, and dense updates up to ``ROOM_BYTES``.

    Parameters
    ----------
    updates : module → update; ``updates[module]`` is called in a worker thread, once, and again where more is needed of
        large factors than their Gram matrices. One worker takes few of them in the caller's.
    solver, device : as for :func:`singular_values`.
    workers : threads; default one per core that this process may use.
    quick : a threshold: of updates without structure, from 256² on, and of those with one core from 1024² on, only how
        many σ lie above it, Σσ², Σσ⁴ and σ₁ (:func:`bora_analysis.linalg.inertia.count`); all σ where that cannot tell.

    Returns
    -------
    Generator of (module, facts, spectrum)

    Examples
    --------
    >>> from bora_analysis import each_spectrum, synthetic_adapter
    >>> adapter = synthetic_adapter("lora", {f"layers.{k}.q_proj": (64, 32) for k in range(2)}, r=4)
    >>> sorted((module, len(spectrum)) for module, facts, spectrum in each_spectrum(adapter))
    [('layers.0.q_proj', 4), ('layers.1.q_proj', 4)]
    """
    place = resolve(solver, device)
    workers = workers or available_cores()
    names, turn = iter(updates), threading.Lock()
    alone, loaded = False, threading.Event()

    @triangles_at(place)
    def some() -> list[tuple[str, Facts, Spectrum]]:
        """The next modules, as many as make a batch worth its call; none when all are taken."""
        nonlocal alone
        found, reduced, waiting, held, read, name = [], [], [], 0, 0, None
        until = time.perf_counter() + (BATCH_SECONDS if place in ("auto", "cpu") else float("inf"))
        for _ in range(BATCH_MODULES):
            with turn:
                name = next(names, None)
            if name is None:
                break
            update = updates[name]
            if isinstance(update, Dense):
                found.append((name, update.facts, _dense_spectrum(update, solver, place, quick, name)))
            elif isinstance(update, BlockProduct):
                read += sum(side.nbytes for side in update.sides)
                waiting.append((name, Light.of(update, partial(updates.__getitem__, name))))
                held += sum(side.nbytes for side in waiting[-1][1].sides)
            else:
                reduced.append((name, update.facts, _reduced(update, name)))
                held += sum(core.nbytes for core in reduced[-1][2].cores)
            del update  # before the next one is read
            if held >= BATCH_BYTES or time.perf_counter() > until:
                break
        alone = read < len(waiting) * _SMALL_BYTES or name is None
        loaded.set()
        together = measured([update for _, update in waiting])
        for (name, update), sizes in zip(waiting, together, strict=True):
            reduced.append((name, update.facts, _checked(update, *sizes, name)))
        if quick is not None:
            told = [_told(quick, place, *each) for each in reduced]
            found += [each for each in told if each]
            reduced = [each for each, known in zip(reduced, told, strict=True) if not known]
        return [*found, *_solved(reduced, solver, place)]

    # To start a thread takes as long as a small adapter. A large one is better off with its heap, which keeps what is
    # freed (bora_analysis.pipes.keep_freed_memory).
    if workers == 1 and len(updates) <= BATCH_MODULES:
        with one_blas_thread():
            while batch := some():
                yield from batch
        return
    with one_blas_thread(), ThreadPoolExecutor(workers, thread_name_prefix="spectrum") as pool:
        try:
            running, left = {pool.submit(some)}, True
            loaded.wait(BATCH_SECONDS)
            if not alone:
                running |= {pool.submit(some) for _ in range(workers - 1)}
            while running:
                done, running = wait(running, return_when=FIRST_COMPLETED)
                batches = [future.result() for future in done]
                left = left and all(batches)
                if left:
                    running |= {pool.submit(some) for _ in range((1 if alone else workers) - len(running))}
                for batch in batches:
                    yield from batch
        finally:  # an error, or a caller that stops early: drop what has not begun
            pool.shutdown(wait=True, cancel_futures=True)


class _Reduced(NamedTuple):
    """An update's cores, what rounding in the computation is relative to, what that of the stored numbers makes."""

    cores: list[Array]
    reach: float
    floor: float
    underflows: bool = False


def _told(quick: Any, place: str, name: str, facts: Facts, known: _Reduced) -> tuple[str, Facts, Spectrum] | None:
    """A module of one large core with its count; None for others, and where a count cannot tell."""
    cores = known.cores
    if len(cores) != 1 or len(cores[0]) != 1 or min(cores[0].shape[1:]) < COUNT_CORE_FROM:
        return None
    (core,) = cores[0]
    found, where = _count(core, quick, place_of(core.shape, place))
    if found is None:
        return None
    values = np.zeros(0)
    return name, facts, Spectrum(values, "count", where, facts.dtype, known.floor, counted=found, reach=known.reach)


def _solved(
    reduced: Sequence[tuple[str, Facts, _Reduced]], solver: str, place: str
) -> list[tuple[str, Facts, Spectrum]]:
    """The spectra of modules from their cores, of which those of one shape are solved together."""
    groups: dict[tuple[Any, ...], list[Array]] = defaultdict(list)
    for _, facts, known in reduced:
        for core in known.cores:
            groups[core.shape[1:], facts.dtype].append(core)
    solved = {key: solve(np.concatenate(stack), key[1], solver, place) for key, stack in groups.items()}
    taken: dict[tuple[Any, ...], int] = defaultdict(int)
    found = []
    for name, facts, known in reduced:
        parts = []
        for core in known.cores:
            key = core.shape[1:], facts.dtype
            start = taken[key]
            taken[key] = end = start + len(core)
            parts.append(Solved(solved[key].values[start:end], solved[key].solver, solved[key].device))
        found.append((name, facts, _union(parts, facts, known)))
    return found


def factor_ranks(update: Update) -> FactorRanks:
    """Numerical ranks of B', Σ' and A': which of the three limits the rank of ΔW (eq. 6, Proposition 1).

    rank(Σ') is found as Σ_k rank(S_k), r small b×b problems instead of one of size br. They are the ranks of the
    numbers that are stored; the tolerance is that of :func:`bora_analysis.metrics.rounding_tolerance`, block by block.

    Returns
    -------
    FactorRanks

    Raises
    ------
    ValueError
        An update that is no product of three such factors (:class:`bora_analysis.updates.contract.Blocked`).

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
    with one_blas_thread():
        left, right = update.factor_cores()
        slots = update.slots()
        B, sigma, A = (sum(map(_rank, stacks)) for stacks in (left, [slot[None] for slot in slots], right))
    inner = sum(len(slot) for slot in slots)
    lower = max(0, B + sigma + A - 2 * inner)
    return FactorRanks(B, sigma, A, update.facts.rank_bound, min(B, sigma, A), lower)


def _union(parts: list[Solved], facts: Facts, known: _Reduced) -> Spectrum:
    values = np.sort(np.concatenate([part.values.ravel() for part in parts]))[::-1][: facts.rank_bound]
    # What was used for the largest cores speaks for the whole.
    solver, device = max(((part.solver, part.device) for part in parts), key=lambda pair: (len(pair[1]), pair[0]))
    _, reach, floor, underflows = known
    if solver == "gram":  # whose values are off by √(Kε)·σ₁
        reach = max(reach, spectral_norm(values) / np.sqrt(EPSILON["float64"]))
    values = np.ascontiguousarray(values)
    return Spectrum(values, solver, device, facts.dtype, floor, reach=reach, underflows=underflows)


def _reduced(update: Update, name: str = "") -> _Reduced:
    with np.errstate(over="ignore", invalid="ignore"):
        return _checked(update, *update.measured(), name)


def _checked(update: Update, cores: list[Array], reach: float, rounding: float, name: str) -> _Reduced:
    if not reach < 1e150:  # the reach is at least their norm
        cores = [check_finite(core, name) for core in cores]
    lost = not any(core.any() for core in cores) and update.underflows()
    return _Reduced(cores, reach, _floor(update, rounding), lost)


def _floor(update: Update, rounding: float) -> float:
    """‖E‖_F ≥ |σ_i(ΔW + E) − σ_i(ΔW)| (Weyl) of rounding errors, uniform up to u|x| and independent: u/√3 deviation."""
    return EPSILON.get(update.facts.dtype, EPSILON["float64"]) / 12**0.5 * rounding


def _dense_spectrum(update: Dense, solver: str, place: str, quick: Any = None, name: str = "") -> Spectrum:
    """The spectrum of an update without structure, which is in memory only while it is solved."""
    facts = update.facts
    with _Room.taken(32 * facts.out_features * facts.in_features):  # itself, what it is made of, LAPACK's copy
        matrix = check_finite(update.to_dense(), name)
        spectrum = None
        if quick is not None and min(matrix.shape) >= COUNT_FROM:
            counted, where = _count(matrix, quick, place_of(matrix.shape, place))
            if counted is not None:
                spectrum = Spectrum(np.zeros(0), "count", where, facts.dtype, counted=counted)
        if spectrum is None:
            solved = solve(matrix[None], facts.dtype, solver, place)
            spectrum = _union([solved], facts, _Reduced([], norm(matrix), _floor(update, update.rounding())))
    return replace(spectrum, noise_floor=update.noise_floor()) if update.noise_floor else spectrum


def _count(matrix: Array, threshold: Any, place: str) -> tuple[Counted | None, str]:
    """The count, and where it was taken."""
    if place == "cpu":
        return count(matrix, threshold), place
    import torch

    try:
        with ONE_AT_A_TIME:
            return count(matrix, threshold, place), place
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return count(matrix, threshold), f"cpu ({place}: out of memory)"


def _rank(stack: Array) -> int:
    """The ranks of matrices, together; that of columns does not change with their size."""
    values = svd_values(normalised(stack, 1)[0])[0]
    return sum(numerical_rank(s, rounding_tolerance(s)) for s in values)


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
