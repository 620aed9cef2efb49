"""Sketches against exact inner products and φ; pairs, duplicates and clusters of a fleet that is known."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_cases import store
from scipy.cluster.hierarchy import fcluster, linkage

from bora_analysis import Adapter, AdapterError, dense, lora, melora, subspace_similarity, write_adapter
from bora_analysis.fleet.pairs import compare_all, exact_pairs
from bora_analysis.fleet.sketches import BETA, DIRECTIONS, SIZE, inner, projectors, signs, sketch, unbiased

M, N, R, K = 60, 48, 6, 10
MODULES = [f"layers.{k}.q_proj" for k in range(K)]


def updates(seed: int, shared: float = 0.0) -> dict[str, Any]:
    """An adapter of which a share comes from a common one."""
    own, common = np.random.default_rng(seed), np.random.default_rng(0)
    found = {}
    for module in MODULES:
        both = [
            (rng.standard_normal((M, R)) * 0.6 ** np.arange(R), rng.standard_normal((R, N))) for rng in (own, common)
        ]
        (B, A), (B0, A0) = both
        found[module] = lora(B, A) * (1 - shared) + lora(B0, A0) * shared
    return found


def exact_cosine(a: dict[str, Any], b: dict[str, Any]) -> float:
    x, y = (np.concatenate([each[module].to_dense().ravel() for module in MODULES]) for each in (a, b))
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.fixture(scope="module")
def fleet() -> dict[str, dict[str, Any]]:
    return {f"a{seed}": updates(seed, shared=(seed % 4) / 4) for seed in range(1, 17)}


@pytest.fixture(scope="module")
def place(fleet: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    adapters = {name: Adapter.from_updates(name, own) for name, own in fleet.items()}
    return store(tmp_path_factory.mktemp("pairs") / "results", adapters, sketch=sketch)


def test_signs_are_fixed_for_good_and_differ_by_module_side_and_size() -> None:
    P = signs("layers.0.q_proj", "left", 5)
    assert np.unique(np.abs(P)).tolist() == [1 / np.sqrt(SIZE)]
    # The first rows, written down: stored sketches must stay comparable.
    assert (P[:4] * np.sqrt(SIZE)).round().astype(int).tolist() == FIRST
    others = [("layers.1.q_proj", "left", 5), ("layers.0.q_proj", "right", 5), ("layers.0.q_proj", "left", 6)]
    assert all((signs(*other)[:, :5] != P).any() for other in others)


FIRST = [[-1, -1, -1, 1, -1], [-1, -1, -1, 1, 1], [-1, 1, 1, -1, -1], [-1, 1, 1, -1, 1]]


@pytest.mark.parametrize("kind", ["lora", "melora", "dense", "rank 1", "zero"])
def test_a_sketch_is_the_product_with_both_matrices(kind: str) -> None:
    rng = np.random.default_rng(0)
    made: dict[str, Any] = {
        "lora": lambda: lora(rng.standard_normal((M, R)), rng.standard_normal((R, N)), scaling=3.0),
        "melora": lambda: melora(
            [rng.standard_normal((M // 2, 2)) for _ in range(2)], [rng.standard_normal((2, N // 2)) for _ in range(2)]
        ),
        "dense": lambda: dense(rng.standard_normal((M, N))),
        "rank 1": lambda: lora(rng.standard_normal((M, 1)), rng.standard_normal((1, N))),
        "zero": lambda: lora(np.zeros((M, 2)), rng.standard_normal((2, N))),
    }
    update = made[kind]()
    found, P, Q = sketch("x", update), signs("x", "left", M), signs("x", "right", N).T
    np.testing.assert_allclose(found["sketch"].reshape(SIZE, SIZE), P @ update.to_dense() @ Q, atol=1e-9)
    left, values, right = np.linalg.svd(update.to_dense(), full_matrices=False)
    k = min(DIRECTIONS, int((values > 1e-9).sum()))
    for basis, signed, vectors in ((found["left"], P, left[:, :k]), (found["right"], Q.T, right[:k].T)):
        columns = basis.reshape(SIZE, DIRECTIONS)
        np.testing.assert_allclose(np.abs(columns[:, :k]), np.abs(signed @ vectors), atol=1e-9)
        assert not columns[:, k:].any()


def test_inner_products_need_no_dense_matrix(fleet: dict[str, Any]) -> None:
    a, b = (fleet[name][MODULES[0]] for name in ("a1", "a3"))
    assert inner(a, b) == pytest.approx(float(np.vdot(a.to_dense(), b.to_dense())))


@pytest.mark.parametrize("kind", ["rank 1, equal", "rank 1, one side", "rank 6", "orthogonal"])
def test_the_bound_on_the_deviation_holds(kind: str) -> None:
    """400 modules with matrices of their own: the mean is right, and the deviation is below β."""
    rng = np.random.default_rng(1)
    u, v, w = (rng.standard_normal((size, 1)) for size in (M, N, N))
    pairs: dict[str, Any] = {
        "rank 1, equal": (lora(u, v.T), lora(u, v.T)),
        "rank 1, one side": (lora(u, v.T), lora(u, w.T)),
        "rank 6": tuple(lora(rng.standard_normal((M, R)), rng.standard_normal((R, N))) for _ in range(2)),
        "orthogonal": (lora(np.eye(M)[:, :3], np.eye(3, N)), lora(np.eye(M)[:, 3:6], np.eye(N)[3:6])),
    }
    a, b = (each.to_dense() for each in pairs[kind])
    size = np.linalg.norm(a) * np.linalg.norm(b)
    errors = []
    for k in range(400):
        P, Q = signs(f"m{k}", "left", M), signs(f"m{k}", "right", N).T
        errors.append((np.vdot(P @ a @ Q, P @ b @ Q) - np.vdot(a, b)) / size)
    assert abs(np.mean(errors)) < 4 * BETA / 20
    assert np.std(errors) <= BETA * 1.05
    if kind == "rank 1, equal":  # where the bound is tight
        assert np.std(errors) > 0.8 * BETA


def test_cosines_are_within_their_deviation_of_the_exact_ones(fleet: dict[str, Any], place: Path) -> None:
    found = compare_all(place)
    names = found.adapters["name"].tolist()
    exact = np.array([[exact_cosine(fleet[a], fleet[b]) for b in names] for a in names])
    off = ~np.eye(len(names), dtype=bool)
    errors = (found.cosine - exact)[off] / found.deviation[off]
    assert found.deviation[off].max() < BETA / np.sqrt(K) * 1.5
    assert np.sqrt(np.mean(errors**2)) < 1
    assert np.abs(errors).max() < 3
    np.testing.assert_allclose(np.diag(found.cosine), 1, atol=1e-6)
    rows = exact_pairs(
        [(Adapter.from_updates(a, fleet[a]), Adapter.from_updates(b, fleet[b])) for a, b in (names[:2],)]
    )
    assert rows["cosine"].item() == pytest.approx(exact[0, 1])


def test_phi_is_near_the_exact_one(fleet: dict[str, Any], place: Path) -> None:
    found = compare_all(place, phi=True)
    names = found.adapters["name"].tolist()
    errors = []
    for i, j in combinations(range(0, len(names), 2), 2):
        a, b = fleet[names[i]], fleet[names[j]]
        for side in ("left", "right"):
            exact = np.mean([
                subspace_similarity(a[module], b[module], side)[DIRECTIONS - 1, DIRECTIONS - 1] for module in MODULES
            ])  # fmt: skip
            assert found.phi is not None
            errors.append(found.phi[side][i, j] - exact)
    deviation = np.sqrt(2 / ((SIZE - 1) * (SIZE + 2)) / K)
    # Chance, max(i, j)/d of R^d, is part of the exact value; that of R^p is taken out of the sketch's.
    assert np.sqrt(np.mean(np.square(errors))) < 2.5 * deviation
    assert abs(np.mean(errors)) < 2 * deviation


def test_the_deviation_of_phi_between_unrelated_subspaces() -> None:
    rng = np.random.default_rng(0)
    bases = rng.standard_normal((400, SIZE * DIRECTIONS))
    rows, ranks = projectors(bases)
    assert set(ranks.tolist()) == {DIRECTIONS}
    i, j = np.triu_indices(400, 1)
    values = unbiased((rows @ rows.T)[i, j] / DIRECTIONS, DIRECTIONS)
    assert abs(values.mean()) < 0.002
    assert values.std() == pytest.approx(np.sqrt(2 / ((SIZE - 1) * (SIZE + 2))), rel=0.03)


def test_duplicates_and_clusters(tmp_path: Path) -> None:
    groups = {"x": updates(1), "y": updates(2)}
    adapters = {}
    for name, own in groups.items():
        for k in range(3):
            noise = updates(100 * k + len(adapters) + 7)
            mixed = {module: own[module] + 0.1 * noise[module] for module in own}
            adapters[f"{name}{k}"] = Adapter.from_updates(f"{name}{k}", mixed)
    adapters["copy"] = Adapter.from_updates("copy", dict(adapters["x0"].items()))
    adapters["scaled"] = Adapter.from_updates("scaled", {module: -2 * x for module, x in adapters["y1"].items()})
    adapters["still"] = Adapter.from_updates("still", {module: 0 * x for module, x in groups["x"].items()})
    found = compare_all(store(tmp_path / "results", adapters, sketch=sketch))
    double = found.duplicates()
    factors = {frozenset((row["name_a"], row["name_b"])): row["factor"] for row in double.to_dict("records")}
    assert set(factors) == {frozenset(("copy", "x0")), frozenset(("scaled", "y1"))}
    assert factors[frozenset(("copy", "x0"))] == pytest.approx(1, rel=1e-5)
    assert factors[frozenset(("scaled", "y1"))] in (pytest.approx(-2, rel=1e-5), pytest.approx(-0.5, rel=1e-5))
    clusters = found.clusters(0.5)
    sets = {frozenset(part["name"]) for _, part in clusters.groupby("cluster")}
    assert sets == {
        frozenset(names) for names in (["x0", "x1", "x2", "copy"], ["y0", "y1", "y2"], ["scaled"], ["still"])
    }
    assert clusters["size"].tolist() == [4] * 4 + [3] * 3 + [1, 1]
    flat = (1 - found.cosine)[np.triu_indices(9, 1)]
    labels = fcluster(linkage(np.maximum(flat, 0), "average"), 0.5, "distance")
    assert len(set(labels)) == 4


def test_modules_that_one_adapter_lacks(tmp_path: Path) -> None:
    a, b = updates(1), updates(1)
    half = {module: b[module] for module in MODULES[:5]}
    adapters = {"a": Adapter.from_updates("a", a), "b": Adapter.from_updates("b", half)}
    adapters["c"] = Adapter.from_updates("c", {"elsewhere.0.v_proj": a[MODULES[0]]})
    found = compare_all(store(tmp_path / "results", adapters, sketch=sketch), phi=True)
    exact = exact_pairs([(adapters["a"], adapters["b"]), (adapters["a"], adapters["c"])])
    assert found.cosine[0, 1] == pytest.approx(exact["cosine"][0], abs=0.05)
    assert 0.5 < exact["cosine"][0] < 0.9
    assert (found.cosine[0, 2], exact["cosine"][1]) == (0, 0)
    assert found.phi is not None
    assert found.phi["left"][0, 1] == pytest.approx(1, abs=1e-5)
    assert exact["phi_left"][0] == pytest.approx(1)
    assert np.isnan(found.phi["left"][0, 2])
    assert np.isnan(exact["phi_left"][1])
    table = found.table()
    assert table[["name_a", "name_b"]].values.tolist()[0] == ["a", "b"]
    assert len(table) == 3
    assert len(found.table(1)) == 1


def test_results_without_sketches_are_refused(tmp_path: Path) -> None:
    adapters = {"a": Adapter.from_updates("a", updates(1))}
    with pytest.raises(AdapterError, match=r"lacks|no such file"):
        compare_all(store(tmp_path / "none", adapters))
    other = store(tmp_path / "other", adapters, sketch=lambda module, update: {"norm": 1.0})
    with pytest.raises(AdapterError, match=r"has no column sketch; sweep the adapters with --sketch bora_analysis"):
        compare_all(other)


def test_pairs_by_their_paths(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    folders = []
    for k in range(2):
        factors = {"q": {"B": rng.standard_normal((M, 2)), "A": rng.standard_normal((2, N))}}
        folders.append(write_adapter(tmp_path / str(k), "lora", factors, alpha=2))
    row = exact_pairs([folders])
    assert (row["a"].item(), -0.5 < row["cosine"].item() < 0.5) == (str(folders[0]), True)
