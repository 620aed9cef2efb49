"""Every rank metric, each defined once.

All functions take the singular values of one update: a :class:`bora_analysis.Spectrum` or a 1-D array, non-negative, in
any order, zeros allowed. They also take those of many updates with as many values each, a row an update, and give an
array: what follows a row, such as a threshold, is then one for each.
A zero update has rank 0 in every metric. Metrics called "rank" are counts or effective counts of directions;
their ordering is

    stable_rank ≤ participation_ratio ≤ hill_number(order 1) ≤ number of non-zero σ,

because the first three are the Hill numbers of order ∞, 2 and 1 of q = σ²/Σσ².

The word "effective rank" means at least seven things in the literature. Here ``effective_rank`` is the count of
σ > 0.005 of BoRA (arXiv 2508.06953 §4.5) and HiRA (ICLR 2025), and Roy & Vetterli's is ``entropy_rank``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from .catalogue.dtypes import EPSILON
from .linalg import Array, normalised
from .linalg.inertia import Counted
from .threshold import Threshold

#: The threshold of effective_rank in BoRA §4.5, which takes it from HiRA §6.1.
THRESHOLD = 0.005
T = TypeVar("T")


def _once(function: Callable[[ArrayLike], T]) -> Callable[[ArrayLike], T]:
    """Of a :class:`bora_analysis.analysis.spectrum.Stack` computed once: several metrics begin with the same."""

    @wraps(function)
    def call(s: ArrayLike) -> T:
        kept = getattr(s, "kept", None)
        if kept is None:
            return function(s)
        if function not in kept:
            kept[function] = function(s)
        return kept[function]

    return call


def effective_rank(s: ArrayLike, threshold: float | str | Threshold | Array = THRESHOLD) -> Any:
    """Count of singular values above a threshold (BoRA §4.5; HiRA, ICLR 2025, §6.1).

    Of one update, an array of absolute thresholds gives the curve: one count per threshold.

    >>> effective_rank(np.array([1.0, 0.01, 0.001])), effective_rank(np.array([1.0, 0.01, 0.001]), "1%")
    (2, 1)
    >>> effective_rank(np.array([1.0, 0.01, 0.001]), np.array([0.1, 0.0001])).tolist()
    [1, 3]
    """
    if isinstance(threshold, str | Threshold):
        threshold = Threshold.of(threshold).limit(spectral_norm(s), frobenius_norm(s))
    limits = np.asarray(threshold, dtype=np.float64)
    if np.ndim(s) > 1 or limits.ndim == 0:
        return _above(s, limits)
    return np.size(s) - np.searchsorted(np.sort(s), limits, side="right")


def _above(s: ArrayLike, limit: Any) -> Any:
    return _plain(np.count_nonzero(np.greater(s, np.expand_dims(limit, -1)), axis=-1))


def _plain(values: Any) -> Any:
    """A number of one update, an array of many."""
    return values if np.ndim(values) else np.asarray(values).item()


def effective_ranks(s: Array, lengths: Array, threshold: float | Array = THRESHOLD) -> Array:
    """The :func:`effective_rank` of many updates, whose singular values stand one behind the other.

    Parameters
    ----------
    s : the values of all updates. lengths : how many each of them has, 0 allowed.
    threshold : an absolute one, or one for each update.

    >>> effective_ranks(np.array([1.0, 0.001, 2.0]), np.array([2, 0, 1])).tolist()
    [1, 0, 1]
    """
    limits = threshold if np.ndim(threshold) == 0 else np.repeat(threshold, lengths)
    above = np.concatenate([[0], np.cumsum(s > limits)])
    ends = np.cumsum(lengths)
    return above[ends] - above[ends - lengths]


def energy(s: ArrayLike) -> Any:
    """Σσ² = ‖ΔW‖_F² (HiRA and BoRA plot it over the layers)."""
    total, power = _squares(s)
    return _plain(np.ldexp(total, 2 * power))


def frobenius_norm(s: ArrayLike) -> Any:
    """‖ΔW‖_F = √Σσ²."""
    total, power = _squares(s)
    return _plain(np.ldexp(np.sqrt(total), power))


@_once
def _squares(s: ArrayLike) -> tuple[Array, Array]:
    """t and e with Σσ² = t · 4^e, in range whatever the σ are."""
    scaled, power = normalised(np.asarray(s), -1)
    return np.sum(scaled * scaled, axis=-1), power[..., 0]


@_once
def spectral_norm(s: ArrayLike) -> Any:
    """‖ΔW‖₂ = σ₁."""
    return _plain(np.max(s, axis=-1, initial=0.0))


def nuclear_norm(s: ArrayLike) -> Any:
    """‖ΔW‖_* = Σσ."""
    return _plain(np.sum(s, axis=-1))


@_once
def _shares(s: ArrayLike) -> Array:
    """σ²/σ₁², zeros for a zero update: scaled first, because σ⁴ would underflow for tiny updates."""
    values = np.asarray(s)
    top = np.max(values, axis=-1, initial=0.0, keepdims=True)
    return np.square(np.divide(values, top, out=np.zeros(values.shape), where=top > 0))


def hill_number(s: ArrayLike, order: float) -> Any:
    """Hill number of q = σ²/Σσ²: (Σ q^a)^(1/(1−a)); order 1 is exp(−Σ q ln q), order ∞ is 1/max q. 0 for a zero update.

    M. O. Hill, "Diversity and evenness", Ecology 54 (1973).

    >>> round(hill_number(np.ones(4), 1.0), 12), hill_number(np.ones((2, 3)), 2.0).round(12).tolist()
    (4.0, [3.0, 3.0])
    """
    shares = _shares(s)
    total = shares.sum(axis=-1, keepdims=True)
    moved = total[..., 0] > 0
    q = np.divide(shares, total, out=np.zeros(shares.shape), where=total > 0)
    if np.isinf(order):
        number = np.divide(1.0, q.max(axis=-1, initial=0.0), out=np.zeros(moved.shape), where=moved)
    elif order == 1:
        number = np.exp(-np.sum(q * np.log(q, out=np.zeros(q.shape), where=q > 0), axis=-1))
    else:
        powers = np.sum(np.power(q, order, out=np.zeros(q.shape), where=q > 0), axis=-1)
        number = np.power(powers, 1.0 / (1.0 - order), out=np.zeros(moved.shape), where=moved)
    return _plain(np.where(moved, number, 0.0))


def stable_rank(s: ArrayLike) -> Any:
    """‖ΔW‖_F² / ‖ΔW‖₂² (Rudelson & Vershynin, J. ACM 2007)."""
    return hill_number(s, np.inf)


def top_share(s: ArrayLike) -> Any:
    """σ₁² / Σσ², the share of the energy in the largest direction; 0 for a zero update.

    >>> round(top_share(np.array([3.0, 1.0])), 12)
    0.9
    """
    total = _shares(s).sum(axis=-1)
    return _plain(np.divide(1.0, total, out=np.zeros(np.shape(total)), where=total > 0))


def participation_ratio(s: ArrayLike) -> Any:
    """(Σσ²)² / Σσ⁴, the inverse participation ratio of the energies."""
    return hill_number(s, 2.0)


def entropy_rank(s: ArrayLike) -> Any:
    """exp of the Shannon entropy of σ/Σσ, the "effective rank" of Roy & Vetterli (EUSIPCO 2007)."""
    return hill_number(np.sqrt(s), 1.0)


def numerical_rank(s: ArrayLike, tolerance: Any) -> Any:
    """Count of σ above a rounding tolerance, see :func:`rounding_tolerance`."""
    return _above(s, tolerance)


def rounding_tolerance(s: ArrayLike, reach: Any = None) -> Any:
    """√K · ε · reach: what the computation in float64 may leave of a σ that is 0, with K values in the spectrum.

    The stored factors are exact numbers, whatever their dtype, and their product has a rank.

    Parameters
    ----------
    reach : sum of the norms of the rank-one terms that ΔW is made of; where they cancel it is far above σ₁. By default
        that of the spectrum, for values alone σ₁.
    """
    if reach is None:
        reach = getattr(s, "reach", None)
    return _plain(np.sqrt(np.shape(s)[-1]) * EPSILON["float64"] * (spectral_norm(s) if reach is None else reach))


def rank_above_rounding(s: Any) -> Any:
    """Count of σ above what rounding of the stored numbers can be expected to make, the noise floor of a Spectrum.

    By Weyl's inequality it moves no σ by more than ‖E‖₂ ≤ ‖E‖_F. With independent errors, uniform up to u|x| in each
    stored number x, ‖E‖_F² is expected at u²/3 · Σ_x x² ‖dΔW/dx‖_F²: for ΔW = s B A at 2u²s²/3 · Σ_k ‖b_k‖²‖a_k‖².

    >>> from bora_analysis import lora, singular_values
    >>> B, A = np.eye(4)[:, :2] * [1.0, 0.001], np.eye(2, 5)
    >>> [rank_above_rounding(singular_values(lora(B, A, dtype=dtype))) for dtype in ("float32", "bfloat16")]
    [2, 1]
    """
    floor = getattr(s, "noise_floor", 0.0)
    ranks = numerical_rank(s, np.fmax(floor, rounding_tolerance(s)))
    return ranks if np.all(np.equal(floor, floor)) else _plain(np.where(np.isnan(floor), floor, ranks))


def energy_rank(s: ArrayLike, share: float) -> Any:
    """Least k whose k largest singular values hold the given share of Σσ².

    >>> energy_rank(np.array([3.0, 1.0]), 0.90), energy_rank(np.array([3.0, 1.0]), 0.95)
    (1, 2)
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; expected 0 < share ≤ 1")
    held = _held(s)
    total = held[..., -1:]
    # The sum of a fully held spectrum may round below its own total.
    short = np.count_nonzero(held < share * total * (1 - 4 * EPSILON["float64"]), axis=-1)
    return _plain(np.where(np.any(total, axis=-1), short + 1, 0))


@_once
def _held(s: ArrayLike) -> Array:
    """The shares of the largest, of the two largest … together."""
    return np.cumsum(np.sort(_shares(s), axis=-1)[..., ::-1], axis=-1)


def condition(s: ArrayLike, tolerance: Any) -> Any:
    """σ₁ / σ_k with k the numerical rank: the spread of the directions that are there. NaN for a zero update."""
    values = np.asarray(s)
    kept = values > np.expand_dims(tolerance, -1)
    least = np.min(values, axis=-1, where=kept, initial=np.inf)
    return _plain(np.where(kept.any(axis=-1), spectral_norm(values) / least, np.nan))


def rank_utilisation(s: ArrayLike, rank_bound: Any, threshold: Any = THRESHOLD) -> Any:
    """effective_rank / rank_bound: the share of the directions that the method allows and the update uses.

    0 where no direction is allowed (AdaLoRA may prune a module to nothing).
    """
    return _plain(utilisation(effective_rank(s, threshold), rank_bound))


def utilisation(ranks: Any, rank_bounds: Any) -> Any:
    """:func:`rank_utilisation` of effective ranks that are known, one or many.

    >>> utilisation([1, 0], [2, 0]).tolist()
    [0.5, 0.0]
    """
    return np.divide(ranks, rank_bounds, out=np.zeros(np.shape(ranks)), where=np.asarray(rank_bounds) > 0)


class Entries(NamedTuple):
    """What :func:`bora_analysis.analysis.entries.entries` finds of one update, whose entries w are times 2^power.

    Attributes
    ----------
    size : m·n. sums : Σw, Σw², Σw³, Σw⁴. rows, columns : (m,) and (n,), Σw² of each.
    """

    size: int
    sums: Array
    rows: Array
    columns: Array
    power: int


def participation(weights: ArrayLike) -> float:
    """(Σa)² / Σa², the effective number of equal parts; 0 where all are 0.

    The inverse of the Herfindahl-Hirschman index; Hill's number of order 2 (Ecology 54, 1973).

    >>> participation([1.0, 1.0, 0.0, 0.0])
    2.0
    """
    a = np.asarray(weights, dtype=float)
    top = a.max(initial=0.0)
    a = a / top if top else a
    return float(a.sum() ** 2 / (a * a).sum()) if top else 0.0


def kurtosis(found: Entries) -> float:
    """m₄ / m₂² of the entries of ΔW about their mean (Pearson 1905): 3 for Gaussian ones, 1 for ±c, n for one of n.

    NaN where all entries are the same.
    """
    mean, second, third, fourth = found.sums / found.size
    about = second - mean**2
    if not about > 1e-12 * second:
        return float("nan")
    return float((fourth - 4 * mean * third + 6 * mean**2 * second - 3 * mean**4) / about**2)


class Statistic(NamedTuple):
    """A number of an update that is computed on request: a column after the metrics.

    Attributes
    ----------
    label, formula, source : as of a :class:`Metric`.
    value : the entries, the spectrum, the edge of the null's bulk → the number.
    """

    label: str
    formula: str
    value: Callable[[Entries, Any, float], float]
    source: str = ""


def above(s: ArrayLike, edge: float) -> float:
    """Count of σ above the edge of a bulk; NaN where that, or the spectrum, is not known."""
    return float("nan") if edge != edge or not np.size(s) else float(np.count_nonzero(np.greater(s, edge)))


#: Column → its row.
STATISTICS: dict[str, Statistic] = {
    "row_participation": Statistic(
        "effective rows", "(Σa)² / Σa², a = ‖row‖²", lambda found, s, edge: participation(found.rows),
        "of ΔW's m rows how many hold the energy, were it in equal parts (Hill 1973)",
    ),
    "column_participation": Statistic(
        "effective columns", "(Σa)² / Σa², a = ‖column‖²", lambda found, s, edge: participation(found.columns),
        "the same of its n columns",
    ),
    "kurtosis": Statistic(
        "kurtosis", "m₄ / m₂² of the entries", lambda found, s, edge: kurtosis(found),
        "about their mean (Pearson 1905): 3 for Gaussian ones",
    ),
    "above_bulk": Statistic(
        "above the bulk", "#{σ > edge}", lambda found, s, edge: above(s, edge),
        "directions above the bulk of random factors (Marchenko & Pastur 1967, for products), see below; missing where "
        "its law is not known",
    ),
}  # fmt: skip


class Metric(NamedTuple):
    """One metric: a row here is a column of the tables, a name on axes and in menus, a line of the documentation.

    Attributes
    ----------
    label, formula : for an axis; τ stands for the threshold.
    value : a spectrum or its values, rank bound, absolute threshold → the number; of many, arrays → array.
    counted : the same from a count, where a count is enough (see :mod:`bora_analysis.linalg.inertia`).
    source : where it comes from.
    degree : a ΔW that is c times as large has c^degree times the value; None where it counts against a limit.
    """

    label: str
    formula: str
    value: Callable[[Any, Any, Any], Any]
    counted: Callable[[Counted, int], float] | None = None
    source: str = ""
    degree: int | None = 0


def _share(share: float) -> Metric:
    return Metric("energy rank", f"{100 * share:.0f} % of Σσ²", lambda s, bound, threshold: energy_rank(s, share))


#: Column of the metrics table → its row, in the order of the table.
METRICS: dict[str, Metric] = {
    "effective_rank": Metric(
        "effective rank", "#{σ > τ}", lambda s, bound, threshold: effective_rank(s, threshold),
        lambda c, bound: c.above, "BoRA §4.5, from HiRA (ICLR 2025); τ = 0.005, or a share of σ₁ or of ‖ΔW‖_F",
        None,
    ),
    "energy": Metric("energy", "Σσ²", lambda s, bound, threshold: energy(s), lambda c, bound: c.energy, degree=2),
    "frobenius_norm": Metric(
        "Frobenius norm", "√Σσ²", lambda s, bound, threshold: frobenius_norm(s), lambda c, bound: c.energy**0.5,
        degree=1,
    ),
    "spectral_norm": Metric(
        "spectral norm", "σ₁", lambda s, bound, threshold: spectral_norm(s), lambda c, bound: c.top, degree=1,
    ),
    "nuclear_norm": Metric("nuclear norm", "Σσ", lambda s, bound, threshold: nuclear_norm(s), degree=1),
    "stable_rank": Metric(
        "stable rank", "Σσ² / σ₁²", lambda s, bound, threshold: stable_rank(s),
        lambda c, bound: c.energy / c.top**2 if c.top else 0.0, "Rudelson & Vershynin 2007",
    ),
    "entropy_rank": Metric(
        "entropy rank", "exp H(σ/Σσ)", lambda s, bound, threshold: entropy_rank(s),
        source='Roy & Vetterli\'s "effective rank" (EUSIPCO 2007)',
    ),
    "participation_ratio": Metric(
        "participation ratio", "(Σσ²)² / Σσ⁴", lambda s, bound, threshold: participation_ratio(s),
        lambda c, bound: c.energy**2 / c.fourth if c.fourth else 0.0,
    ),
    "numerical_rank": Metric(
        "numerical rank", "rank ΔW",
        lambda s, bound, threshold: numerical_rank(s, rounding_tolerance(s)),
        source="of the factors as stored, in whatever dtype: σ above the rounding of the computation in float64",
    ),
    "rank_above_rounding": Metric(
        "rank above rounding", "#{σ > noise floor}", lambda s, bound, threshold: rank_above_rounding(s),
        source="what rounding of the stored numbers cannot have made, see noise_floor; missing where that is not known",
        degree=None,
    ),
    "energy_rank_90": _share(0.90),
    "energy_rank_95": _share(0.95),
    "energy_rank_99": _share(0.99),
    "condition": Metric(
        "condition", "σ₁ / σₖ", lambda s, bound, threshold: condition(s, rounding_tolerance(s)),
        source="k is the numerical rank; missing for a zero update",
    ),
    "top_share": Metric(
        "share of σ₁", "σ₁² / Σσ²", lambda s, bound, threshold: top_share(s),
        lambda c, bound: c.top**2 / c.energy if c.energy else 0.0, "1 / stable_rank; 0 for a zero update",
    ),
    "rank_bound": Metric(
        "rank bound", "≥ rank ΔW", lambda s, bound, threshold: bound, lambda c, bound: bound,
        "highest rank that the sizes allow; min(m, n, br) for BoRA (Proposition 1)",
    ),
    "rank_utilisation": Metric(
        "rank utilisation", "#{σ > τ} / bound",
        lambda s, bound, threshold: rank_utilisation(s, bound, threshold),
        lambda c, bound: float(utilisation(c.above, bound)), degree=None,
    ),
}  # fmt: skip
