"""What the synthetic lab computes: sizes, budgets, ranks, and the methods beside the three."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from method_lists import BLOCK_METHODS, EXPERT_METHODS
from scipy.linalg import svdvals

from app import lab_model, random_target
from app.lab_model import LARGEST_CORE, METHODS, OTHERS, Setting, compare, ranks_frame, sizes_of, spectra_frame
from bora_analysis.catalogue import METHODS as CATALOGUE
from bora_analysis.catalogue.cost import cost
from bora_analysis.methods import recipe

SETTING = Setting(64, 48, 4, 8)


@pytest.mark.parametrize(
    "setting", [SETTING, Setting(16, 24, 4, 8)], ids=["usual", "minis of a rank above their sizes"]
)
def test_bora_against_the_dense_svd(setting):
    for kind in ("gaussian", "decay"):
        for one in compare(replace(setting, kind=kind)):
            dense = svdvals(one.update.to_dense())
            np.testing.assert_allclose(one.values, dense[: one.values.size], atol=1e-12)
            assert one.measured == np.linalg.matrix_rank(one.update.to_dense())


def test_the_counterexample():
    """Full-rank B', Σ' and A', and yet ΔW = 0; no other method has such factors."""
    found = compare(Setting(2, 2, 2, 2, kind="counterexample"), ["loha"])
    assert [one.method for one in found] == list(METHODS)
    bora = found[-1]
    assert bora.ranks is not None
    assert (bora.ranks.B, bora.ranks.sigma, bora.ranks.A, bora.measured) == (2, 4, 2, 0)
    with pytest.raises(ValueError, match="needs r ≥"):
        compare(replace(SETTING, kind="counterexample"))


@pytest.mark.parametrize("method", OTHERS)
@pytest.mark.parametrize("setting", [SETTING, replace(SETTING, same="budget", kind="decay")], ids=["r", "budget"])
def test_another_method(method, setting):
    sizes = sizes_of(setting, method)
    assert sizes is not None
    one = compare(setting, [method])[-1]
    assert one.method == method
    dense = svdvals(one.update.to_dense())
    np.testing.assert_allclose(one.values, dense[: one.values.size], atol=1e-12)
    np.testing.assert_allclose(dense[one.values.size :], 0, atol=1e-12)
    bought = cost("bora", 64, 48, 4, blocks=8).parameters
    if not CATALOGUE[method].ranked:
        return

    def price(r):
        blocks = sizes[1] if method in BLOCK_METHODS else 1
        return cost(method, 64, 48, r, blocks=blocks, experts=sizes[1] if method in EXPERT_METHODS else None).parameters

    formula: Any = CATALOGUE[method].cost
    shared = formula.shared if method == "unilora" else 0  # counted for the first layer
    assert one.facts.parameters == price(sizes[0]) + shared
    if setting.same == "budget":  # nothing larger would do, but for one that is the least there is
        step = sizes[1] if CATALOGUE[method].splits else 1
        limit = recipe(method).most
        most = min(48, 48 if limit is None else limit(_spec(), 64, 48))
        assert price(sizes[0]) <= bought or sizes[0] == step
        assert price(sizes[0] + step) > bought or sizes[0] + step > most
    else:
        assert sizes[0] == (3 if method == "lokr" else 4)


def _spec():
    return lab_model.Synthetic("lora", {lab_model.SEED_PATH: (64, 48)}, 1)


@pytest.mark.parametrize("same", ["r", "budget"])
@pytest.mark.parametrize("r", [1, 6, 64])
def test_what_is_offered_stays_within_the_limits(same, r):
    """FourierFT's core is the whole matrix; LoHa's and MoELoRA's grow with r."""
    large = Setting(1024, 768, r, 8, same=same)
    assert sizes_of(large, "fourierft") is None
    for method in ("loha", "moelora", "vera", "sbora-fa"):
        sizes = sizes_of(large, method)
        assert sizes is not None
        experts = sizes[1] if method in EXPERT_METHODS else None
        assert cost(method, 1024, 768, sizes[0], experts=experts).rank_bound <= LARGEST_CORE
    assert sizes_of(Setting(97, 64, r, 1, same=same), "vblora") is None  # no vector divides both sizes


def test_tables():
    outcomes = compare(SETTING, ["c3a", "loha", "vera"])
    table = ranks_frame(outcomes, 0.005).set_index("method")
    assert list(table.index) == ["lora", "melora", "bora", "c3a", "loha", "vera"]
    assert table["r"].isna().to_dict() == {m: m == "c3a" for m in table.index}
    assert table["rank_sigma"].isna().to_dict() == {m: m in ("c3a", "loha") for m in table.index}
    assert (table["measured_rank"] <= table["rank_bound"]).all()
    frame = spectra_frame(outcomes, {one.method: one.method for one in outcomes})
    assert frame.groupby("method").size().to_dict() == {one.method: len(one.values) for one in outcomes}


def test_what_a_random_update_needs():
    """Eckart and Young for LoRA; rank is worth more the flatter the spectrum."""
    flat, steep = (random_target.captured(48, 32, 4, 4, "exp-norm", decay, 0) for decay in (0.0, 2.0))
    for table, decay in ((flat, 0.0), (steep, 2.0)):
        energies = np.arange(1, 33) ** (-2 * decay)
        own = table[table["method"] == "lora"]
        assert own["r"].tolist() == [2, 4, 8, 16]  # ½, 1, 2, 4 times
        expected = [energies[:r].sum() / energies.sum() for r in own["r"]]
        np.testing.assert_allclose(own["captured"], expected, atol=1e-6)
        assert set(table["method"]) == set(METHODS)
        assert (table["parameters"] <= 4 * 4 * (48 + 32)).all()
    for table, least, most in ((flat, 0.02, 0.5), (steep, -0.02, 0.001)):
        bora = table[table["method"] == "bora"]
        assert len(bora) == 4
        assert (bora["captured"] - bora["lora_captured"]).between(least, most).all()


def test_a_random_update_with_nothing_to_find():
    """BoRA's b² r parameters are beyond every budget here; then it is left out."""
    table = random_target.captured(8, 8, 1, 8, "exp-norm", 0.0, 0)
    assert set(table["method"]) == {"lora", "melora"}
    assert table["parameters"].max() <= 4 * (8 + 8) < 8 * 8 + 8 + 8
