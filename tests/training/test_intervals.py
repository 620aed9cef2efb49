"""Metrics, bootstrap intervals and tests between two, against definitions, scipy and scikit-learn."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from scipy.stats import binomtest, norm, pearsonr
from sklearn.metrics import matthews_corrcoef

from bora_analysis.training.intervals import STATISTICS, Bootstrap, between, measured
from bora_analysis.training.scoring import matthews, pearson

HOW = Bootstrap(resamples=999)


def outputs(n: int = 60, classes: int = 2, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(classes, size=n)
    predicted = np.where(rng.random(n) < 0.7, label, rng.integers(classes, size=n))
    weight = rng.integers(1, 9, n).astype(float)
    loss = rng.exponential(size=n) * weight
    return {
        "label": label,
        "predicted": predicted,
        "loss": loss,
        "weight": weight,
        "correct": (label == predicted) * 1.0,
    }


def expected(metric: str, each: dict[str, np.ndarray]) -> float:
    label, predicted = each["label"], each["predicted"]
    return {
        "accuracy": lambda: np.mean(label == predicted),
        "exact_match": lambda: np.mean(label == predicted),
        "matthews": lambda: matthews_corrcoef(label, predicted),
        "pearson": lambda: pearsonr(label, predicted)[0],
        "loss": lambda: each["loss"].sum() / each["weight"].sum(),
        "perplexity": lambda: np.exp(each["loss"].sum() / each["weight"].sum()),
    }[metric]()


@pytest.mark.parametrize("metric", STATISTICS)
@pytest.mark.parametrize("classes", [2, 5])
def test_values_and_intervals_are_those_of_the_definition(metric, classes):
    each, other = outputs(classes=classes), outputs(classes=classes, seed=1)
    found = measured(metric, each, HOW)
    assert found.value == pytest.approx(expected(metric, each), abs=1e-12)
    # Resample by resample, from another generator: the ends agree within the error of 999 draws.
    rng = np.random.default_rng(123)
    rows = rng.integers(60, size=(600 if metric == "matthews" else 2000, 60))
    drawn = [expected(metric, {name: values[row] for name, values in each.items()}) for row in rows]
    spread = np.std(drawn)
    assert np.allclose([found.low, found.high], np.quantile(drawn, [0.025, 0.975]), atol=0.35 * spread)
    change = measured(metric, each, HOW, other)
    assert change.value == pytest.approx(expected(metric, each) - expected(metric, other), abs=1e-12)
    assert change.low < change.value < change.high
    assert measured(metric, each, HOW, each)[:3] == (0.0, 0.0, 0.0)  # paired
    assert measured(metric, each, HOW)[:3] == found[:3]
    other_seed = measured(metric, each, Bootstrap(999, seed=1)).distribution
    assert (other_seed != found.distribution).any()


def test_the_interval_of_an_accuracy_is_about_that_of_its_standard_error():
    label = np.zeros(1057, dtype=int)
    each = {"label": label, "predicted": (np.arange(1057) < 198).astype(int)}
    found = measured("accuracy", each, Bootstrap())
    error = np.sqrt(found.value * (1 - found.value) / 1057)
    assert [found.low, found.high] == pytest.approx(found.value + error * norm.ppf([0.025, 0.975]), abs=0.002)
    narrow = measured("accuracy", each, Bootstrap(confidence=0.5))
    assert found.low < narrow.low < found.value < narrow.high < found.high


def test_a_pair_knows_more_than_two_intervals():
    one = outputs(400)
    predicted = one["predicted"].copy()
    predicted[:6] = 1 - one["label"][:6]
    two = one | {"predicted": predicted}
    change, alone = measured("accuracy", two, HOW, one), measured("accuracy", one, HOW)
    assert change.high - change.low < (alone.high - alone.low) / 2


def test_scores_agree_with_those_of_training_and_constant_sides_are_zero():
    each = outputs(classes=3)
    assert measured("matthews", each, HOW).value == pytest.approx(matthews(each["predicted"], each["label"]))
    assert measured("pearson", each, HOW).value == pytest.approx(pearson(each["predicted"], each["label"]))
    for side in ("label", "predicted"):
        flat = each | {side: np.zeros_like(each[side])}
        assert measured("matthews", flat, HOW)[:3] == (0.0, 0.0, 0.0)
        assert measured("pearson", flat, HOW)[:3] == (0.0, 0.0, 0.0)


def test_one_example_has_no_interval():
    found = measured("accuracy", {"label": np.array([1]), "predicted": np.array([1])}, HOW)
    assert found.value == 1
    assert np.isnan([found.low, found.high]).all()


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (3, 0), (2, 9), (10, 10), (1, 30)])
def test_mcnemar_is_exact(only_first, only_second):
    n = 100
    label, one, two = np.zeros(n, int), np.zeros(n, int), np.zeros(n, int)
    two[:only_first] = 1  # wrong where the first is right
    one[only_first : only_first + only_second] = 1
    found = between("accuracy", {"label": label, "predicted": one}, {"label": label, "predicted": two}, HOW)
    apart = only_first + only_second
    tail = sum(comb(apart, k) for k in range(min(only_first, only_second) + 1)) / 2**apart
    assert (found.only_first, found.only_second, found.test) == (only_first, only_second, "McNemar, exact")
    assert found.p == pytest.approx(min(1.0, 2 * tail))
    assert not apart or found.p == pytest.approx(binomtest(only_first, apart).pvalue)
    assert found.difference == pytest.approx((only_second - only_first) / n)


def test_other_metrics_are_tested_by_the_bootstrap():
    one = outputs(200)
    much = between("loss", one, one | {"loss": one["loss"] * 2}, HOW)
    assert (much.only_first, much.test) == (None, "paired bootstrap")
    assert much.p == pytest.approx(2 / 1000)  # none of 999 resamples on the other side
    rng = np.random.default_rng(5)
    little = between("loss", one, one | {"loss": one["loss"] * rng.choice([0.9, 1.1], 200)}, HOW)
    assert little.p > 0.01
    assert between("perplexity", one, one, HOW).p == 1.0


@pytest.mark.parametrize(
    ("wrong", "told"), [({"resamples": 0}, "resamples is 0"), ({"confidence": 95}, "confidence is 95")]
)
def test_wrong_settings_are_said(wrong, told):
    with pytest.raises(ValueError, match=told):
        Bootstrap(**wrong)
