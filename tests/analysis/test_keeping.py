"""Which directions a cut keeps, against the dense SVD."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bora_analysis import Adapter, AdapterError, dense, lora, synthetic_adapter
from bora_analysis.analysis.keeping import Directions, Keep, keeps_of, planned

SHAPES = {"layers.0.q_proj": (24, 16), "layers.1.q_proj": (16, 32)}
ADAPTERS: dict[str, Any] = {
    "lora": lambda: synthetic_adapter("lora", SHAPES, r=6, kind="decay", decay=0.5, seed=1),
    "melora": lambda: synthetic_adapter("melora", SHAPES, r=3, blocks=4, seed=1),
    "bora": lambda: synthetic_adapter("bora", SHAPES, r=2, blocks=4, seed=1),
    "sbora-fa": lambda: synthetic_adapter("sbora-fa", SHAPES, r=4, seed=1),
    "dense": lambda: Adapter.from_updates(
        "dense", {name: dense(np.random.default_rng(k).standard_normal(SHAPES[name])) for k, name in enumerate(SHAPES)}
    ),
}
CUTS = [
    Keep(k=0), Keep(k=1), Keep(k=3), Keep(share=0.9, order="energy"), Keep(share=0.5, order="energy"), Keep(),
    Keep(k=2, order="smallest"), Keep(k=2, order="random"), Keep(k=3, order="random", draw=2),
]  # fmt: skip


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("keep", CUTS, ids=lambda keep: f"{keep}-{keep.order}-{keep.draw}")
def test_a_cut_is_that_of_the_dense_svd(name, keep):
    adapter = ADAPTERS[name]()
    found = Directions(adapter, adapter)
    part = found.part(keep, seed=3)
    kept, total, counts, shares = 0.0, 0.0, [], []
    for module in adapter:
        ours = np.matmul(*found.pair(module, part.chosen[module]))
        U, s, V = np.linalg.svd(adapter[module].to_dense(), full_matrices=False)
        rank = int((s > 1e-10 * s[0]).sum())
        energies = np.cumsum(s[:rank] ** 2) / np.sum(s**2)
        k = rank if keep.whole else keep.k
        if keep.share is not None:
            k = int(np.flatnonzero(energies >= keep.share)[0]) + 1
        index = np.arange(rank)[:k]
        if keep.order == "smallest":
            index = np.arange(rank)[::-1][:k]
        elif keep.order == "random":
            index = part.chosen[module]
            assert len(set(index)) == k
            assert max(index) < rank
        expected = (U[:, index] * s[index]) @ V[index]
        assert np.allclose(np.linalg.norm(ours), np.linalg.norm(expected), atol=1e-10)
        if len(np.unique(s[:rank].round(9))) == rank:  # else the vectors are any basis
            np.testing.assert_allclose(ours, expected, atol=1e-9 * s[0])
        counts.append(len(index))
        kept, total = kept + np.sum(s[index] ** 2), total + np.sum(s**2)
        shares.append(np.sum(s[index] ** 2) / np.sum(s**2))
    assert part.rank == np.mean(counts)
    assert part.energy == pytest.approx(kept / total, abs=1e-12)
    assert part.energy_mean == pytest.approx(np.mean(shares), abs=1e-12)
    sizes = [sum(adapter[module].shape) for module in adapter]
    own = sum(adapter[module].facts.parameters for module in adapter)
    assert part.parameters == (own if keep.whole else np.dot(counts, sizes))


def test_random_orders_are_nested_and_repeat():
    adapter = ADAPTERS["lora"]()
    found, other = Directions(adapter, adapter), Directions(adapter, adapter)
    chosen = [found.part(Keep(k=k, order="random", draw=1), seed=5).chosen for k in (1, 2, 6)]
    for module in adapter:
        assert chosen[0][module].tolist() == chosen[1][module][:1].tolist()
        assert chosen[1][module].tolist() == chosen[2][module][:2].tolist()
        assert sorted(chosen[2][module]) == list(range(6))
    again = other.part(Keep(k=2, order="random", draw=1), seed=5).chosen
    assert all((again[module] == chosen[1][module]).all() for module in adapter)
    for change in ({"draw": 2}, {"seed": 6}):
        seed = change.pop("seed", 5)
        differs = other.part(Keep(k=6, order="random", **({"draw": 1} | change)), seed=seed).chosen
        assert any((differs[module] != chosen[2][module]).any() for module in adapter)


def test_modules_that_are_not_cut_stay_whole():
    adapter = ADAPTERS["lora"]()
    found = Directions(adapter, ["layers.1.q_proj"])
    part = found.part(Keep(k=1))
    assert {module: len(index) for module, index in part.chosen.items()} == {
        "layers.0.q_proj": 6, "layers.1.q_proj": 1,
    }  # fmt: skip


def test_no_update_at_all_and_numbers_at_the_ends_of_the_range():
    zero = Adapter.from_updates("zero", {"q": lora(np.zeros((4, 2)), np.zeros((2, 3)))})
    part = Directions(zero, zero).part(Keep())
    assert (part.rank, part.energy, part.energy_mean) == (0.0, 1.0, 1.0)
    for size in (1e-150, 1e150):
        ends = Adapter.from_updates("ends", {"q": lora(np.eye(4)[:, :2] * [2 * size, size], np.eye(2, 3))})
        assert Directions(ends, ends).part(Keep(k=1)).energy == pytest.approx(0.8)


def test_vectors_beyond_the_memory_are_computed_again(monkeypatch):
    adapter = ADAPTERS["bora"]()
    expected = Directions(adapter, adapter)
    monkeypatch.setattr("bora_analysis.analysis.keeping._MEMORY", 0)
    found = Directions(adapter, adapter)
    assert not found._vectors
    for module in adapter:
        for ours, theirs in zip(found.pair(module, np.arange(2)), expected.pair(module, np.arange(2)), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_not_finite_is_said_with_its_module():
    broken = Adapter.from_updates("broken", {"q": lora(np.full((4, 1), 1e300), np.full((1, 3), 1e300))})
    with pytest.raises(AdapterError, match=r"^broken: q: "):
        Directions(broken, broken)


@pytest.mark.parametrize("given", ["", "x", "1.5", "-1", "0%", "101%", "1,,2", [0.9], ["all", None], []])
def test_other_cuts_are_said(given):
    with pytest.raises(ValueError, match="keep is"):
        keeps_of(given)


def test_plans():
    keeps = keeps_of([1, "2", "99.5 %", "all", 0, 1])
    assert [str(keep) for keep in keeps] == ["1", "2", "99.5%", "all", "0"]
    plan = planned(keeps, ["largest", "random"], 2)
    told = [(str(keep), keep.order, keep.draw) for keep in plan]
    assert told[0] == ("all", "largest", 0)  # the others are compared with it
    assert sorted(told[1:]) == sorted([
        ("99.5%", "energy", 0), ("0", "largest", 0), ("1", "largest", 0), ("2", "largest", 0),
        *((k, "random", draw) for k in "12" for draw in (0, 1)),
    ])  # fmt: skip
    assert str(planned([Keep(k=3)], ["smallest"], 1)[0]) == "all"
    with pytest.raises(ValueError, match="order is 'best'; expected one of largest, smallest, random"):
        planned(keeps, ["best"], 1)
    with pytest.raises(ValueError, match="draws is 0"):
        planned(keeps, ["random"], 0)
