"""What many adapters show, against brute force, SciPy and simulations with a known answer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import percentileofscore

from bora_analysis import AdapterError, layer_metrics, spectra, synthetic_adapter
from bora_analysis.fleet.numbers import (
    Fleet,
    _line,
    distributions,
    growth,
    of_adapters,
    outliers,
    percentiles,
    rank_for_all,
    read_fleet,
    serving_ranks,
)
from bora_analysis.metrics import energy_rank

SHAPES = {f"model.layers.{k}.self_attn.{name}": (40, 24) for k in range(4) for name in ("q_proj", "v_proj")}


@pytest.fixture(scope="module")
def adapters() -> list[Any]:
    return [
        synthetic_adapter("lora", SHAPES, r=r, seed=10 * r + k, kind="decay", decay=0.3 + 0.1 * k)
        for r in (2, 4, 8)
        for k in range(3)
    ]


@pytest.fixture(scope="module")
def fleet(adapters: list[Any]) -> Fleet:
    return Fleet.of_metrics([layer_metrics(adapter) for adapter in adapters], base_model="mine")


def test_distributions_are_the_quantiles_of_each_group(fleet: Fleet) -> None:
    found = distributions(fleet)
    assert found[["base_model", "method", "projection", "r"]].values.tolist() == [
        ["mine", "lora", projection, r] for projection in "qv" for r in (2, 4, 8)
    ]
    assert found["adapters"].tolist() == [3] * 6
    assert found["modules"].tolist() == [12] * 6
    for row in found.to_dict("records"):
        own = fleet.layers[(fleet.layers["projection"] == row["projection"]) & (fleet.layers["r"] == row["r"])]
        for name in ("stable_rank", "energy_rank_99", "top_share"):
            for percent in (5, 25, 50, 75, 95):
                assert row[f"{name}_{percent}"] == pytest.approx(np.percentile(own[name].astype(float), percent))
    np.testing.assert_allclose(fleet.layers["top_share"], fleet.layers["spectral_norm"] ** 2 / fleet.layers["energy"])


def made(values: dict[int, list[float]], modules: int = 2) -> Fleet:
    """A fleet whose adapters of rank r have the given stable ranks, in every module."""
    frame = layer_metrics(synthetic_adapter("lora", {f"layers.{k}.q_proj": (9, 9) for k in range(modules)}, r=2))
    frames = [frame.assign(r=r, stable_rank=value) for r, own in values.items() for value in own]
    return Fleet.of_metrics(frames)


def test_the_exponent_of_a_power_law_is_found_exactly() -> None:
    (row,) = growth(made({r: [1.5 * r**0.25] * 2 for r in (2, 8, 32)})).to_dict("records")
    assert (row["adapters"], row["r_min"], row["r_max"]) == (6, 2, 32)
    for name, value in (("exponent", 0.25), ("low", 0.25), ("high", 0.25), ("factor", 1.5)):
        assert row[name] == pytest.approx(value)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """95 %, with a spread that is three times as large at the largest r."""
    rng = np.random.default_rng(0)
    x = np.log(np.repeat([4.0, 8.0, 16.0, 64.0], 8))
    spread = 0.1 + 0.2 * (x == x.max())
    hits = 0
    from scipy.stats import t

    reach = t.ppf(0.975, len(x) - 2)
    for _ in range(1000):
        slope, _, error = _line(x, 0.3 * x + 1 + spread * rng.standard_normal(len(x)))
        hits += abs(slope - 0.3) < reach * error
    assert 930 <= hits <= 975


def test_hc3_by_its_definition() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal(12), rng.standard_normal(12)
    X = np.stack([np.ones(12), x], axis=1)
    inverse = np.linalg.inv(X.T @ X)
    beta = inverse @ X.T @ y
    hat = np.diag(X @ inverse @ X.T)
    meat = X.T @ np.diag(((y - X @ beta) / (1 - hat)) ** 2) @ X
    slope, start, error = _line(x, y)
    assert [start, slope] == pytest.approx(beta)
    assert error == pytest.approx(np.sqrt((inverse @ meat @ inverse)[1, 1]))


def test_few_adapters_have_no_interval_or_no_line() -> None:
    (row,) = growth(made({2: [1.0, 1.1, 1.2], 8: [2.0]})).to_dict("records")
    assert np.isfinite(row["exponent"])
    assert np.isnan(row["low"])
    assert np.isnan(row["high"])
    assert growth(made({4: [1.0, 2.0, 3.0, 4.0]})).empty
    assert growth(made({4: [1.0], 8: [2.0]})).empty


@pytest.mark.parametrize("count", [1, 3, 12])
def test_an_outlier_is_found_whatever_the_depth_does(count: int) -> None:
    """σ₁ falls along a curve; one module has twenty times what belongs there, another a twentieth."""
    rng = np.random.default_rng(0)
    layers = 24
    frame = layer_metrics(synthetic_adapter("lora", {f"layers.{k}.q_proj": (9, 9) for k in range(layers)}, r=2))
    curve = np.exp(-0.1 * np.arange(layers) + (0.3 * np.sin(np.arange(layers) / 4) if count >= 5 else 0))
    frames = []
    for k in range(count):
        values = curve * np.exp(0.05 * rng.standard_normal(layers))
        if k == count - 1:
            values[[7, 20]] *= [20, 1 / 20]
        frames.append(frame.assign(spectral_norm=values * 7.0 ** (k % 3), adapter=f"a{k}"))  # levels differ
    found = outliers(Fleet.of_metrics(frames))
    assert sorted(zip(found["adapter"], found["module"], strict=True)) == [
        (f"a{count - 1}", "layers.20.q_proj"), (f"a{count - 1}", "layers.7.q_proj"),
    ]  # fmt: skip
    times = dict(zip(found["module"], found["times"], strict=True))
    assert times["layers.7.q_proj"] == pytest.approx(20, rel=0.35)
    assert times["layers.20.q_proj"] == pytest.approx(1 / 20, rel=0.35)
    assert found["peers"].tolist() == [layers * count] * 2
    np.testing.assert_allclose(found["value"] / found["expected"], found["times"])
    assert outliers(Fleet.of_metrics(frames), times=30).empty


def test_percentiles_are_those_of_scipy(fleet: Fleet, adapters: list[Any]) -> None:
    theirs = of_adapters(fleet.layers)
    new = layer_metrics(synthetic_adapter("lora", SHAPES, r=4, kind="decay", decay=0.45, seed=99))
    for layers in (new, layer_metrics(adapters[4])):  # the second is in the reference: ties count by half
        for row in percentiles(layers, fleet, "mine").itertuples():
            values = theirs[str(row.metric)].to_numpy()
            expected = percentileofscore(values, row.value, kind="mean")
            assert row.percentile == pytest.approx(expected, abs=1e-9)
            assert (row.count, row.median) == (9, pytest.approx(np.median(values)))
    with pytest.raises(AdapterError, match=r"the reference has no adapter of other; there are those of mine \(9\)"):
        percentiles(new, fleet, "other")


def test_the_rank_that_serves_all(fleet: Fleet, adapters: list[Any]) -> None:
    for share in (0.9, 0.95, 0.99):
        found = serving_ranks(fleet, share)
        assert found["rank"].is_monotonic_decreasing
        for row in found.to_dict("records"):
            own = spectra(adapters[int(row["id"])])
            needed = {
                module: energy_rank(part["singular_value"].to_numpy(), share) for module, part in own.groupby("module")
            }
            assert row["rank"] == max(needed.values()) == needed[row["module"]]
            assert row["rank_now"] == own["index"].max()
            assert (row["bytes"], row["bytes_now"]) == (8 * 64 * 2 * row["rank"], 8 * 64 * 2 * row["rank_now"])
        whole = rank_for_all(found)
        assert (whole["rank"], whole["rank_now"]) == (found["rank"].max(), 8)
        assert whole["saved"] == pytest.approx(1 - whole["rank"] / 8)
        assert whole["within"][whole["rank"]] == 1.0
    with pytest.raises(ValueError, match="share is 2; expected 0 < share ≤ 1"):
        serving_ranks(fleet, 2)
    with pytest.raises(AdapterError, match=r"the share 0\.5 needs the singular values"):
        serving_ranks(fleet, 0.5)


def test_modules_without_an_update_do_not_count() -> None:
    frame = layer_metrics(synthetic_adapter("lora", SHAPES, r=2, kind="init"))
    both = Fleet.of_metrics([frame, layer_metrics(synthetic_adapter("lora", SHAPES, r=2))])
    assert (len(both.layers), len(both.adapters)) == (8, 2)
    assert repr(both) == "<Fleet of 2 adapters, 8 modules, 1 base model>"
    assert read_fleet(both) is both
    still = Fleet.of_metrics([frame])
    assert distributions(still).empty
    assert growth(still).empty
    assert outliers(still).empty
    assert percentiles(frame, both).empty
    assert isinstance(both.bases(), pd.Series)
