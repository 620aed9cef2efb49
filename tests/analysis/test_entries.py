"""Statistics of the entries of ΔW, and the edge of the null's bulk, against dense matrices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import kurtosis as scipy_kurtosis

from bora_analysis import Adapter, analyse, bora, dense, lora, melora, synthetic_adapter
from bora_analysis.analysis import entries as module
from bora_analysis.analysis.entries import entries
from bora_analysis.analysis.null import sizes_of, unit_draws, unit_edge
from bora_analysis.analysis.tables import LAYER_COLUMNS
from bora_analysis.bundled import data_folder
from bora_analysis.catalogue import METHODS, made
from bora_analysis.methods.random_factors import bulk_edge
from bora_analysis.metrics import STATISTICS, kurtosis, participation


def agrees(update: Any) -> None:
    W, found = update.to_dense(), entries(update)
    scale = 2.0**found.power
    np.testing.assert_allclose(found.rows * scale**2, (W**2).sum(axis=1), rtol=1e-10, atol=1e-300)
    np.testing.assert_allclose(found.columns * scale**2, (W**2).sum(axis=0), rtol=1e-10, atol=1e-300)
    sums = [(np.abs(W) ** k).sum() for k in range(1, 5)]
    for k in range(1, 5):
        assert found.sums[k - 1] * scale**k == pytest.approx((W**k).sum(), abs=1e-10 * sums[k - 1])
    assert found.size == W.size
    assert kurtosis(found) == pytest.approx(scipy_kurtosis(W.ravel(), fisher=False), rel=1e-8)


@pytest.mark.parametrize("method", made())
def test_of_every_method_that_can_be_made(method):
    blocks = 4 if METHODS[method].blocks else 1
    shape = (128, 128) if method == "vblora" else (48, 32)
    r = 2 if method == "lokr" else 4
    agrees(synthetic_adapter(method, {"q": shape}, r=r, blocks=blocks)["q"])


@pytest.mark.parametrize("tiles", [False, True])
def test_through_pairs_of_columns_and_through_tiles(tiles, monkeypatch):
    """Where the entries are cheaper they are made; a lopsided size makes pairs cheaper."""
    monkeypatch.setattr(module, "TILE", 100)
    rng = np.random.default_rng(0)
    made_of_rows = []
    monkeypatch.setattr(module, "_rows_of", lambda *parts: made_of_rows.append(1) or rows_of(*parts))
    r = 12 if tiles else 2
    B, A = rng.standard_normal((24, r)) + 0.5, rng.standard_normal((r, 36)) - 0.2
    agrees(lora(B, A, scaling=3.0))
    agrees(bora(B, A, rng.standard_normal((4, 4, r))))
    agrees(melora([B[:10], B[10:] * 1e-3], [A[:, :16], A[:, 16:]]))
    agrees(dense(B @ A))
    assert bool(made_of_rows) == tiles


rows_of = module._rows_of


def test_extreme_and_constant_entries():
    rng = np.random.default_rng(1)
    B, A = rng.standard_normal((12, 2)), rng.standard_normal((2, 9))
    expected = kurtosis(entries(lora(B, A)))
    for scale in (1e-150, 1e-90, 1e90, 1e150):
        found = entries(lora(B * scale, A))
        assert kurtosis(found) == pytest.approx(expected)
        assert participation(found.rows) == pytest.approx(participation(entries(lora(B, A)).rows))
    assert np.isnan(kurtosis(entries(lora(np.ones((4, 1)), np.ones((1, 5))))))
    zero = entries(lora(np.zeros((4, 1)), np.ones((1, 5))))
    assert np.isnan(kurtosis(zero))
    assert participation(zero.rows) == 0
    signs = np.where(rng.random((40, 50)) < 0.5, -1.0, 1.0)
    assert kurtosis(entries(dense(signs))) == pytest.approx(1, abs=0.02)
    assert kurtosis(entries(dense(rng.standard_normal((300, 300))))) == pytest.approx(3, abs=0.1)
    one = np.zeros((10, 10))
    one[3, 4] = 5
    assert participation(entries(dense(one)).rows) == pytest.approx(1)


def test_the_columns_come_on_request():
    folder = data_folder() / "trained-bora-r8-b8"
    plain, more = analyse(folder).layer_metrics, analyse(folder, statistics=True).layer_metrics
    assert tuple(more.columns) == (*LAYER_COLUMNS, *STATISTICS)
    assert more[[*LAYER_COLUMNS]].equals(plain)
    assert (more["row_participation"] < 384).all()
    assert (more["kurtosis"] > 3).all()
    assert more["above_bulk"].between(1, 40).all()
    mixed = Adapter.from_updates(
        "sum", {"q": lora(np.ones((4, 1)), np.ones((1, 3))) + lora(np.eye(4, 1), np.eye(1, 3))}
    )
    layers = analyse(mixed, statistics=True).layer_metrics
    assert layers["row_participation"].notna().all()


def test_the_edge_of_one_gaussian_matrix_is_that_of_marchenko_and_pastur():
    for c in (0.01, 0.25, 1.0):
        assert bulk_edge((50, (c,), 1.0)) ** 2 * 50 == pytest.approx((1 + c**0.5) ** 2)


@pytest.mark.parametrize(
    ("name", "m", "n", "r", "blocks", "activation", "spikes"),
    [
        ("lora", 2000, 1000, 200, 1, "", 0), ("lora", 600, 900, 300, 1, "", 0), ("full", 400, 300, 300, 1, "", 0),
        ("melora", 1600, 1200, 150, 4, "", 0), ("bora", 4096, 4096, 8, 32, "exp-norm", 8),
        ("bora", 1024, 512, 8, 32, "no-exp", 0), ("sbora-fa", 600, 500, 150, 1, "", 0),
    ],
)  # fmt: skip
def test_the_bulk_of_the_null_ends_at_its_edge(name, m, n, r, blocks, activation, spikes):
    """Brute force: the largest σ of the draws, below those that BoRA's mean makes."""
    parameters = {"sbora-fa": m * r, "full": m * n}.get(name, (m + n + (blocks**2 if name == "bora" else 0)) * r)
    facts: Any = synthetic_adapter("lora", {"q": (m, n)}, r=1)["q"].facts
    bound = min(m, n, r * blocks)
    facts = replace(
        facts, method=name, r=r, blocks=blocks, parameters=parameters, rank_bound=bound, activation=activation
    )
    sizes = sizes_of(facts)
    draws: Any = unit_draws(sizes, 3, 0)
    edge = unit_edge(sizes)
    assert draws.spectra[:, spikes].mean() == pytest.approx(edge, rel=0.03)
    assert (draws.spectra > edge * 1.05).sum(axis=1).max() <= spikes
    if spikes:
        assert (draws.spectra[:, spikes - 1] > edge * 1.1).all()


def test_planted_directions_stand_above_the_bulk():
    rng = np.random.default_rng(0)
    B, A = rng.standard_normal((768, 16)), rng.standard_normal((16, 768))
    B[:, :3] *= 4
    layers = analyse(Adapter.from_updates("planted", {"q": lora(B, A), "v": lora(B[:, 3:], A[3:])}), statistics=True)
    assert layers.layer_metrics["above_bulk"].tolist() == [3, 0]
    unknown = analyse(synthetic_adapter("loha", {"q": (32, 32)}, r=2), statistics=True).layer_metrics
    assert unknown["above_bulk"].isna().all()
