"""Counts above a threshold, against all singular values."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from method_lists import BLOCK_METHODS, MADE
from scipy.linalg import svdvals

from bora_analysis import Adapter, Threshold, analyse, dense, synthetic_adapter
from bora_analysis.analysis import spectrum
from bora_analysis.linalg.inertia import count, spectral_norm
from bora_analysis.metrics import METRICS


def matrix(p: int, q: int, seed: int, decay: float, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    k = min(p, q)
    U, V = (np.linalg.qr(rng.standard_normal((size, k))).Q for size in (p, q))
    return scale * (U * decay ** np.arange(k)) @ V.T


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 99), st.sampled_from([0.3, 0.8, 1.0]), st.floats(-3, 1))
def test_the_count_is_that_of_the_singular_values(p, q, seed, decay, exponent):
    C, threshold = matrix(p, q, seed, decay, 3.0), 10.0**exponent
    found, s = count(C, threshold), np.asarray(svdvals(C))
    window = 4 * (p + q) * 2.0**-53 * float((s**2).sum())
    inside = np.abs(s**2 - threshold**2) < 0.5 * window
    if found is None:  # only where a σ² is near τ², or τ² near nothing
        assert (np.abs(s**2 - threshold**2) < 2 * window).any() or threshold**2 <= 2 * window
        return
    assert not inside.any()
    assert found.above == (s > threshold).sum()
    assert found.energy == pytest.approx((s**2).sum(), rel=1e-12)
    assert found.fourth == pytest.approx((s**4).sum(), rel=1e-12)
    assert found.top == pytest.approx(s[0], rel=1e-9)


@pytest.mark.parametrize("threshold", [0.001, 0.1, 1.0, 5.0])
def test_the_way_through_torch_counts_the_same(threshold):
    C = matrix(40, 30, 5, 0.8, 3.0)
    found = count(C, threshold, "cpu:0")
    assert found is not None
    assert found.above == np.sum(np.asarray(svdvals(C)) > threshold)
    assert found.fourth == pytest.approx(np.sum(np.asarray(svdvals(C)) ** 4), rel=1e-12)
    assert found.top == pytest.approx(3.0, rel=1e-9)


def test_a_value_at_the_threshold_is_left_to_the_singular_values():
    C = matrix(30, 20, 0, 1.0, 0.5)
    assert count(C, 0.5) is None
    assert count(C, 0.5 - 1e-9).above == 20  # pyright: ignore[reportOptionalMemberAccess]
    assert count(C, 0.5 + 1e-9).above == 0  # pyright: ignore[reportOptionalMemberAccess]
    assert count(C, 0.0) is None
    assert count(0 * C, 0.1).above == 0  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("threshold", ["1%", "37%", "100%", "0.05 at norm 1", "3 at norm 2"])
def test_thresholds_that_depend_on_the_matrix(threshold):
    C = matrix(60, 45, 4, 0.8, 3.0)
    s = np.asarray(svdvals(C))
    found = count(C, threshold)
    if threshold == "100%":  # σ₁ itself: nothing but the singular values can tell
        assert found is None
        return
    assert found is not None
    assert found.above == (s > Threshold.of(threshold).limit(s[0], np.linalg.norm(s))).sum()
    closest = Threshold(s[7] / s[0], relative=True)
    assert count(C, closest) is None
    assert count(C, Threshold(s[7] / s[0] * (1 - 1e-6), relative=True)).above == 8  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("shape", [(1, 5), (2, 2), (70, 30), (30, 70)])
def test_largest_singular_value(shape):
    C = np.random.default_rng(1).standard_normal(shape)
    assert spectral_norm(C) == pytest.approx(svdvals(C)[0], rel=1e-9)
    assert spectral_norm(C.astype(np.float32)) == pytest.approx(svdvals(C)[0], rel=1e-5)


def test_a_quick_analysis_fills_what_a_count_tells(monkeypatch):
    monkeypatch.setattr(spectrum, "COUNT_FROM", 16)
    noise = np.random.default_rng(2).standard_normal((40, 30)) * 1e-3
    adapter = Adapter.from_updates("demo", {
        "layers.0.q_proj": dense(matrix(40, 30, 3, 0.7) + noise), "layers.0.v_proj": dense(np.eye(4)),
        "layers.0.k_proj": dense(matrix(40, 30, 3, 1.0, 0.005)),  # all at the threshold: a full SVD after all
    })  # fmt: skip
    whole, quick = analyse(adapter), analyse(adapter, quick=True)
    columns = ["effective_rank", "energy", "frobenius_norm", "spectral_norm", "stable_rank", "participation_ratio",
               "top_share", "rank_bound", "rank_utilisation"]  # fmt: skip
    for name in columns:
        np.testing.assert_allclose(quick.layer_metrics[name], whole.layer_metrics[name], rtol=1e-8, err_msg=name)
    row: Any = quick.layer_metrics.set_index("projection").loc["q"]
    assert np.isnan([float(row[name]) for name in METRICS if name not in columns]).all()
    assert set(quick.spectra["projection"]) == {"v", "k"}
    assert "count" in quick.provenance[0]


@pytest.mark.parametrize("method", MADE)
def test_large_cores_of_every_method_are_counted(method, monkeypatch):
    """Where one core holds ΔW, whatever the method; a threshold in the gap of its spectrum is counted exactly."""
    monkeypatch.setattr(spectrum, "COUNT_CORE_FROM", 2)
    adapter = synthetic_adapter(method, {"layers.0.q_proj": (96, 96)}, r=3, blocks=3 if method in BLOCK_METHODS else 1)
    whole = analyse(adapter)
    values = whole.values[whole.values > 1e-9]
    tau = float(np.sqrt(values[0] * values[-1])) if values[0] > values[-1] else float(values[0] / 2)
    whole, quick = analyse(adapter, threshold=tau), analyse(adapter, threshold=tau, quick=True)
    for name in ("effective_rank", "energy", "spectral_norm", "stable_rank", "rank_utilisation"):
        np.testing.assert_allclose(quick.layer_metrics[name], whole.layer_metrics[name], rtol=1e-8, err_msg=name)
    if method in ("lora", "bora", "loha"):
        assert "by count on" in quick.provenance[0]
        assert not len(quick.spectra)
