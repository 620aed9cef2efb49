"""Metrics of held-out examples with bootstrap intervals, and tests between two that share their examples.

The bootstrap is paired: a resample draws examples, and what two models did with an example stays together.
Intervals are the percentiles of scipy's bootstrap. McNemar's test (Psychometrika 1947) is the exact one, a binomial of
the examples that only one of the two gets right.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
#: Example by example, by the names of :data:`STATISTICS`.
Outputs = Mapping[str, Array]

# Numbers that one batch of resamples holds.
_BATCH = 1 << 21


def _accuracy(label: Array, predicted: Array, axis: int = -1) -> Array:
    return (label == predicted).mean(axis=axis)


def _matthews(label: Array, predicted: Array, axis: int = -1) -> Array:
    """Of any number of classes (Gorodkin 2004); 0 if one side is constant."""
    n = label.shape[axis]
    classes = range(int(max(label.max(), predicted.max())) + 1)
    true, found = ([(side == k).sum(axis=axis) / n for k in classes] for side in (label, predicted))
    agree = (label == predicted).mean(axis=axis)
    both = sum(t * f for t, f in zip(true, found, strict=True))
    spread = (1 - sum(t**2 for t in true)) * (1 - sum(f**2 for f in found))
    return np.divide(agree - both, np.sqrt(spread), out=np.zeros_like(agree), where=spread > 1e-12)


def _pearson(label: Array, predicted: Array, axis: int = -1) -> Array:
    """0 if one side is constant."""
    x = label - label.mean(axis=axis, keepdims=True)
    y = predicted - predicted.mean(axis=axis, keepdims=True)
    spread = np.sqrt((x**2).sum(axis=axis) * (y**2).sum(axis=axis))
    flat = (np.ptp(label, axis=axis) == 0) | (np.ptp(predicted, axis=axis) == 0)
    return np.divide((x * y).sum(axis=axis), spread, out=np.zeros_like(spread), where=~flat)


def _loss(loss: Array, weight: Array, axis: int = -1) -> Array:
    return loss.sum(axis=axis) / weight.sum(axis=axis)


def _perplexity(loss: Array, weight: Array, axis: int = -1) -> Array:
    return np.exp(np.minimum(_loss(loss, weight, axis), 700.0))  # exp(710) is Inf


def _exact(correct: Array, axis: int = -1) -> Array:
    return correct.mean(axis=axis)


class Statistic(NamedTuple):
    """A metric: the columns of the outputs that it is made of, its function, and whether it counts right examples."""

    columns: tuple[str, ...]
    function: Callable[..., Array]
    counts: bool = False
    lower_is_better: bool = False


#: The metric that every task has beside its own.
LOSS = "loss"
#: Metric → how it comes from the outputs. ``loss`` is per example, or per token with ``weight`` tokens.
STATISTICS: dict[str, Statistic] = {
    "accuracy": Statistic(("label", "predicted"), _accuracy, counts=True),
    "matthews": Statistic(("label", "predicted"), _matthews),
    "pearson": Statistic(("label", "predicted"), _pearson),
    "perplexity": Statistic(("loss", "weight"), _perplexity, lower_is_better=True),
    "exact_match": Statistic(("correct",), _exact, counts=True),
    LOSS: Statistic(("loss", "weight"), _loss, lower_is_better=True),
}


@dataclass(frozen=True)
class Bootstrap:
    """How intervals are made: number of resamples, their seed, the confidence of the interval."""

    resamples: int = 2000
    seed: int = 0
    confidence: float = 0.95

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ValueError(f"resamples is {self.resamples}; expected at least 1")
        if not 0 < self.confidence < 1:
            raise ValueError(f"confidence is {self.confidence}; expected a number between 0 and 1, such as 0.95")


class Interval(NamedTuple):
    value: float
    low: float
    high: float
    distribution: Array


def measured(metric: str, outputs: Outputs, how: Bootstrap, reference: Outputs | None = None) -> Interval:
    """The metric with its interval; with ``reference``, by how much it exceeds that of the reference.

    Of one example there is no interval: NaN.

    >>> right = {"label": np.array([0, 1, 1, 0]), "predicted": np.array([0, 1, 0, 0])}
    >>> found = measured("accuracy", right, Bootstrap())
    >>> float(found.value), float(found.low), float(found.high)
    (0.75, 0.25, 1.0)
    >>> float(measured("accuracy", right, Bootstrap(), right).value)
    0.0
    """
    from scipy.stats import bootstrap

    columns, function, *_ = STATISTICS[metric]
    samples = [np.asarray(outputs[name]) for name in columns]
    samples += [np.asarray(reference[name]) for name in columns] if reference is not None else []

    def statistic(*parts: Array, axis: int = -1) -> Array:
        own, others = parts[: len(columns)], parts[len(columns) :]
        found = function(*own, axis=axis)
        return found - function(*others, axis=axis) if others else found

    value, n = float(statistic(*samples)), len(samples[0])
    if n < 2:
        return Interval(value, np.nan, np.nan, np.full(1, value))
    found = bootstrap(
        samples, statistic, paired=True, vectorized=True, method="percentile", n_resamples=how.resamples,
        confidence_level=how.confidence, batch=max(1, _BATCH // n), rng=np.random.default_rng(how.seed),
    )  # fmt: skip
    low, high = found.confidence_interval
    return Interval(value, float(low), float(high), found.bootstrap_distribution)


class Difference(NamedTuple):
    """Two models on the same examples: second minus first, and how likely as much would be without a difference.

    ``only_first`` and ``only_second`` count the examples that one of them alone gets right; None for metrics that do
    not count.
    """

    difference: float
    low: float
    high: float
    only_first: int | None
    only_second: int | None
    p: float
    test: str


def between(metric: str, first: Outputs, second: Outputs, how: Bootstrap) -> Difference:
    """McNemar's exact test where the metric counts right examples, else the paired bootstrap's.

    >>> label = np.zeros(20, int)
    >>> one, two = ({"label": label, "predicted": (np.arange(20) < k).astype(int)} for k in (8, 0))
    >>> found = between("accuracy", one, two, Bootstrap())
    >>> round(found.difference, 3), found.only_second, round(found.p, 5)
    (0.4, 8, 0.00781)
    """
    from scipy.stats import binomtest

    found = measured(metric, second, how, first)
    if not STATISTICS[metric].counts:
        drawn = found.distribution
        # With the sample itself among the resamples, p is never 0.
        tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
        p = min(1.0, 2 * (1 + int(tail)) / (1 + len(drawn)))
        return Difference(found.value, found.low, found.high, None, None, p, "paired bootstrap")
    right = [_right(metric, each) for each in (first, second)]
    one, two = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    p = float(binomtest(one, one + two).pvalue) if one + two else 1.0
    return Difference(found.value, found.low, found.high, one, two, p, "McNemar, exact")


def _right(metric: str, outputs: Outputs) -> Array:
    columns = [np.asarray(outputs[name]) for name in STATISTICS[metric].columns]
    return columns[0].astype(bool) if len(columns) == 1 else columns[0] == columns[1]
