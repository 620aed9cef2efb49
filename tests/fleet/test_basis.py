"""The shared basis of many adapters, against dense matrices."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet_cases import adapter

from bora_analysis import Adapter, AdapterError, bora, dense, lora, melora, sweep
from bora_analysis.fleet.basis import shared_basis
from bora_analysis.fleet.numbers import Fleet

M, N = 24, 20
MODULES = [f"layers.{k}.q_proj" for k in range(3)]


def made(seed: int, r: int = 3) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        module: lora(rng.standard_normal((M, r)) * 0.5 ** np.arange(r), rng.standard_normal((r, N)), scaling=1 + seed)
        for module in MODULES
    }


def mixed() -> dict[str, dict[str, Any]]:
    """Methods of every structure, one without a module, one of which a module is still."""
    rng = np.random.default_rng(7)
    own = {f"a{seed}": made(seed) for seed in range(3)}
    own["bora"] = {
        module: bora(rng.standard_normal((M, 2)), rng.standard_normal((2, N)), rng.standard_normal((2, 2, 2)))
        for module in MODULES
    }
    own["melora"] = {
        module: melora(
            [rng.standard_normal((M // 2, 1)) for _ in range(2)], [rng.standard_normal((1, N // 2)) for _ in range(2)]
        )
        for module in MODULES
    }
    own["dense"] = {module: dense(rng.standard_normal((M, N))) for module in MODULES[:2]}
    own["still"] = {**made(9), MODULES[1]: lora(np.zeros((M, 2)), np.ones((2, N)))}
    return own


def in_memory(own: dict[str, dict[str, Any]]) -> list[Adapter]:
    return [Adapter.from_updates(name, updates) for name, updates in own.items()]


def oracle(own: dict[str, dict[str, Any]], rank: int) -> dict[str, float]:
    """The definition, with every ΔW dense and NumPy's SVD of them side by side."""
    whole = {name: {module: x.to_dense() for module, x in updates.items()} for name, updates in own.items()}
    energy = {name: sum(np.sum(x**2) for x in updates.values()) for name, updates in whole.items()}
    kept = dict.fromkeys(own, 0.0)
    for module in MODULES:
        having = {name: updates[module] for name, updates in whole.items() if module in updates}
        scaled = [x / np.sqrt(energy[name]) for name, x in having.items()]
        U = np.linalg.svd(np.hstack(scaled))[0][:, :rank]
        V = np.linalg.svd(np.vstack(scaled))[2][:rank].T
        for name, x in having.items():
            kept[name] += float(np.sum((U.T @ x @ V) ** 2)) / energy[name]
    return kept


@pytest.mark.parametrize("names", ["all", "few"])  # more directions than rows, and fewer
def test_it_is_the_dense_definition(names: str) -> None:
    own = mixed() if names == "all" else {f"a{seed}": made(seed) for seed in range(4)}
    ranks = [1, 2, 5, 9, 12, 24]
    found = shared_basis(in_memory(own), ranks=ranks)
    for rank in ranks:
        part = found.kept[found.kept["rank"] == rank]
        assert dict(zip(part["name"], part["kept"], strict=True)) == pytest.approx(oracle(own, rank), rel=1e-9)
    table = found.table()
    assert table["rank"].tolist() == ranks
    assert table["kept_min"].tolist()[-1] == pytest.approx(1, abs=1e-12)
    assert found.rank_for(1.0) == (24 if names == "all" else 12)
    rank = found.rank_for(0.8)
    assert rank is not None
    assert min(oracle(own, rank).values()) >= 0.8


def test_no_bases_lose_less_than_half_of_it() -> None:
    """The mean loss lies between the best one-sided one, which bounds every basis, and its double over both sides."""
    own = {f"a{seed}": made(seed) for seed in range(5)}
    for rank in (1, 3, 6, 10):
        lost = 1 - np.mean([*oracle(own, rank).values()])
        tails = []
        for stack in (np.hstack, np.vstack):
            tail = 0.0
            for module in MODULES:
                norms = {name: sum(np.sum(x.to_dense() ** 2) for x in each.values()) for name, each in own.items()}
                scaled = [each[module].to_dense() / np.sqrt(norms[name]) for name, each in own.items()]
                tail += float(np.sum(np.linalg.svd(stack(scaled), compute_uv=False)[rank:] ** 2))
            tails.append(tail / len(own))
        found = shared_basis(in_memory(own), ranks=[rank]).kept["kept"].mean()
        assert 1 - found == pytest.approx(lost, rel=1e-9)
        assert max(tails) - 1e-12 <= 1 - found <= sum(tails) + 1e-12


def test_what_is_known_without_a_computation() -> None:
    one = made(1)
    copies = shared_basis(in_memory({f"c{k}": one for k in range(4)}), ranks=[1, 2, 3])
    for rank in (1, 2, 3):  # of copies it is the truncation of each
        sigma = [np.linalg.svd(x.to_dense(), compute_uv=False) for x in one.values()]
        expected = sum(float(np.sum(s[:rank] ** 2)) for s in sigma) / sum(float(np.sum(s**2)) for s in sigma)
        assert copies.kept.loc[copies.kept["rank"] == rank, "kept"].tolist() == pytest.approx([expected] * 4)
    apart = {f"o{k}": {"q": lora(np.eye(M)[:, [k]], np.eye(N)[[k]])} for k in range(4)}  # orthogonal: a direction each
    found = shared_basis(in_memory(apart), ranks=[1, 2, 4])
    assert found.kept.groupby("rank")["kept"].sum().tolist() == pytest.approx([1, 2, 4])
    assert found.sizes["numbers_now"].tolist() == [4 * (M + N)] * 3
    assert found.sizes["numbers"].tolist() == [rank * (M + N) + 4 * rank**2 for rank in (1, 2, 4)]
    assert found.table()["memory"].tolist() == pytest.approx(
        [(rank * (M + N) + 4 * rank**2) / (4 * (M + N)) for rank in (1, 2, 4)]
    )


def test_ranks_by_default_end_where_all_is_kept() -> None:
    found = shared_basis(in_memory({f"a{seed}": made(seed) for seed in range(3)}))
    assert found.table()["rank"].tolist() == [1, 2, 4, 8, 9]
    assert found.table()["kept_min"].tolist()[-1] == pytest.approx(1, abs=1e-12)
    assert found.modules["adapters"].unique().tolist() == [3]
    assert found.modules.loc[found.modules["rank"] == 9, "kept"].tolist() == pytest.approx([1.0] * 3)


def test_of_a_sweep_and_its_options(tmp_path: Path) -> None:
    homes = [adapter(tmp_path / "in" / f"a{seed}", seed=seed) for seed in range(3)]
    results = sweep(tmp_path / "in", tmp_path / "out", workers=1, modules="layers.[01]").results
    found = shared_basis(results, ranks=[3, 12])
    again = shared_basis(homes, ranks=[3, 12], modules="layers.[01]")
    assert found.kept["kept"].tolist() == again.kept["kept"].tolist()
    assert found.kept["name"].tolist() == ["a0", "a1", "a2"] * 2
    assert set(found.modules["module"]) == {"layers.0.q_proj", "layers.1.q_proj"}
    shutil.rmtree(homes[1])
    with pytest.raises(AdapterError, match="a1"):
        shared_basis(results)


def test_what_has_no_shared_basis() -> None:
    one, other = made(1), made(2)
    other[MODULES[0]] = lora(np.ones((M + 4, 1)), np.ones((1, N)))
    with pytest.raises(AdapterError, match=r"layers\.0\.q_proj: adapters have it in sizes 24×20, 28×20; expected one"):
        shared_basis(in_memory({"a": one, "b": other}))
    with pytest.raises(AdapterError, match="no adapter has an update"):
        shared_basis(in_memory({"a": {"q": lora(np.zeros((M, 1)), np.ones((1, N)))}}))
    with pytest.raises(ValueError, match="expected whole numbers from 1 on"):
        shared_basis(in_memory({"a": one}), ranks=[0])
    from bora_analysis import layer_metrics

    with pytest.raises(AdapterError, match="metrics alone"):
        shared_basis(Fleet.of_metrics([layer_metrics(in_memory({"a": one})[0])]))
