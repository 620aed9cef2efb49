"""BoRA on layers that b does not divide: eq. 4 = eq. 6 = eq. 8 on what is left of the padded product, and its bound."""

from __future__ import annotations

import json
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import exact_rank
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_analysis import Adapter, AdapterError, bora, layer_metrics, null, read_adapter, recommend, singular_values
from bora_analysis.adapters import write_adapter
from bora_analysis.adapters.synthetic import KINDS, Synthetic, synthetic_adapter, write_synthetic
from bora_analysis.analysis.budget import within_budget
from bora_analysis.analysis.entries import entries
from bora_analysis.analysis.vectors import singular_vectors
from bora_analysis.catalogue import ACTIVATIONS
from bora_analysis.catalogue.cost import cost
from bora_analysis.catalogue.sizes import padded_bound
from bora_analysis.cli import main
from bora_analysis.updates.blocks import BlockProduct, Cut, activate

DTYPES = {"float64": np.float64, "float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
sizes: dict[str, Any] = {"m": st.integers(1, 9), "n": st.integers(1, 9), "b": st.integers(1, 5), "r": st.integers(1, 3)}


def factors(m, n, b, r, seed, high=3):
    r, rng = min(r, max(m, n)), np.random.default_rng(seed)
    shapes = (m, r), (r, n), (b, b, r)
    return [rng.integers(-high, high + 1, shape).astype(float) for shape in shapes]


def borders(size, b):
    """Where block i begins and ends, in what is left of b blocks of ⌈size/b⌉."""
    each = -(-size // b)
    return [slice(min(i * each, size), min((i + 1) * each, size)) for i in range(b)]


def equation_4(B, A, sigma):
    """ΔW block by block."""
    (m, _), n, b = B.shape, A.shape[1], len(sigma)
    delta = np.zeros((m, n))
    for i, rows in enumerate(borders(m, b)):
        for j, columns in enumerate(borders(n, b)):
            delta[rows, columns] = B[rows] @ np.diag(sigma[i, j]) @ A[:, columns]
    return delta


def equation_8(B, A, sigma, X):
    """Y_j = B_j Σ_k Σ_jk (A_k X_k)."""
    (m, _), n, b = B.shape, A.shape[1], len(sigma)
    inner = [A[:, own] @ X[own] for own in borders(n, b)]
    return np.concatenate([
        B[own] @ sum(sigma[j, k][:, None] * inner[k] for k in range(b)) for j, own in enumerate(borders(m, b))
    ])  # fmt: skip


@settings(max_examples=200)
@given(**sizes, seed=st.integers(0, 2**32 - 1), dtype=st.sampled_from(list(DTYPES)))
def test_eq_4_is_eq_6_is_eq_8_exactly(m, n, b, r, seed, dtype):
    """Of small whole numbers, which every dtype holds."""
    B, A, sigma = factors(m, n, b, r, seed)
    stored = [each.astype(DTYPES[dtype]) for each in (B, A, sigma)]
    if dtype == "bfloat16":  # as a file of it is read
        stored = [each.astype(np.float32) for each in stored]
    update = bora(*stored, scaling=2.0, activation="identity", dtype=dtype, pad=True)
    expected = 2 * equation_4(B, A, sigma)
    left, middle, right = update.expanded()
    X = np.random.default_rng(seed).integers(-3, 4, (n, 2)).astype(float)
    for found in (update.to_dense(), left @ middle @ right, np.linalg.multi_dot(update.factors())):
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(update.to_dense() @ X, 2 * equation_8(B, A, sigma, X))
    assert update.facts.dtype == dtype
    assert isinstance(update, Cut) == bool(m % b or n % b)


@settings(max_examples=200)
@given(**sizes, seed=st.integers(0, 2**32 - 1))
def test_the_bound_always_holds(m, n, b, r, seed):
    B, A, sigma = factors(m, n, b, r, seed)
    update = bora(B, A, sigma, activation="identity", pad=True)
    assert exact_rank(update.to_dense()) <= update.facts.rank_bound <= min(m, n, b * B.shape[1])
    facts = update.facts
    priced = cost("bora", m, n, B.shape[1], blocks=b, pad=True)
    assert (facts.parameters, facts.macs_per_token, facts.rank_bound) == (
        priced.parameters, priced.macs_per_token, priced.rank_bound,
    )  # fmt: skip
    assert facts.parameters == sum(each.size for each in (B, A, sigma))


@pytest.mark.parametrize("shape", [(5, 5, 4, 1), (7, 9, 4, 2), (9, 4, 3, 1), (8, 6, 4, 1), (3, 2, 5, 1)])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_generic_factors_reach_the_bound(shape, activation):
    m, n, b, r = shape
    rng = np.random.default_rng(1)
    B, A, sigma = (rng.standard_normal(each) for each in ((m, r), (r, n), (b, b, r)))
    update = bora(B, A, sigma, activation=activation, pad=True)
    np.testing.assert_allclose(update.to_dense(), equation_4(B, A, activate(sigma, activation)), atol=1e-12)
    assert np.linalg.matrix_rank(update.to_dense()) == update.facts.rank_bound
    values = np.linalg.svd(update.to_dense(), compute_uv=False)[: update.facts.rank_bound]
    np.testing.assert_allclose(singular_values(update).values, values, atol=1e-12 * values[0])
    np.testing.assert_allclose(singular_vectors(update).values[: len(values)], values, atol=1e-12 * values[0])
    np.testing.assert_allclose(entries(update).rows * 4.0 ** entries(update).power, (update.to_dense() ** 2).sum(1))


def test_where_b_divides_padding_changes_nothing():
    rng = np.random.default_rng(2)
    B, A, sigma = rng.standard_normal((6, 2)), rng.standard_normal((2, 9)), rng.standard_normal((3, 3, 2))
    plain, padded = bora(B, A, sigma), bora(B, A, sigma, pad=True)
    assert isinstance(padded, BlockProduct)
    assert plain.facts == padded.facts
    np.testing.assert_array_equal(plain.to_dense(), padded.to_dense())


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_says_that_it_is_padded(tmp_path, kind):
    shapes = {"layers.0.q_proj": (24, 16), "layers.0.v_proj": (7, 16)}
    write_synthetic(tmp_path, Synthetic("bora", shapes, 2, 5, kind=kind, pad=True))
    read, memory = read_adapter(tmp_path), synthetic_adapter("bora", shapes, 2, 5, kind=kind, pad=True)
    for module, update in memory.items():
        assert read[module].facts == update.facts
        np.testing.assert_array_equal(read[module].to_dense(), update.to_dense())
    assert layer_metrics(read)["rank_bound"].tolist() == [8, 7]  # blocks of 4, 4, 4, 4, 0 and 2, 2, 2, 1, 0
    if kind != "init":  # a ΔW of zeros is compared with nothing
        assert null(read).missing[0].endswith("no null: is padded: its blocks differ in size")
        advice = recommend(read)
        assert (advice.config["num_blocks"], advice.config["pad"]) == (5, True)
        advised = advice.table  # of a rank that its blocks cannot form, r is raised until they can
        for rank, r in zip(advised["rank"], advised["r"], strict=True):
            assert padded_bound(24, 16, r, 5) >= rank or padded_bound(7, 16, r, 5) >= rank
    config = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert config.pop("pad") is True
    with pytest.raises(AdapterError, match=r"bora_sigma: b = 5 does not divide .* pad = true in the configuration"):
        read_adapter(tmp_path, config=config)


def test_nothing_is_padded_unasked(tmp_path):
    parts = {"B": np.ones((5, 1)), "A": np.ones((1, 5)), "sigma": np.ones((4, 4, 1))}
    for refused in (
        lambda: bora(**parts),
        lambda: write_adapter(tmp_path, "bora", {"q": parts}, alpha=1),
        lambda: Synthetic("bora", {"q": (5, 5)}, 1, 4),
        lambda: cost("bora", 5, 5, 1, blocks=4),
    ):
        with pytest.raises(
            ValueError, match=r"b = 4 does not divide m = 5 and n = 5; b may be 1, 5; or pad .*pad=True"
        ):
            refused()
    for refused in (
        lambda: write_adapter(tmp_path, "melora", {"q": parts}, alpha=1, pad=True),
        lambda: Synthetic("melora", {"q": (5, 5)}, 1, 4, pad=True),
        lambda: cost("lora", 5, 5, 1, pad=True),
    ):
        with pytest.raises(ValueError, match="cannot be padded; methods that can: bora"):
            refused()
    write_adapter(tmp_path, "bora", {"q": parts}, alpha=1, pad=True)
    padded: Any = read_adapter(tmp_path)
    assert Adapter.from_updates("one", dict(padded))["q"].facts.rank_bound == 3


def test_the_commands():
    runner = CliRunner()
    words = ["cost", "--model", "all-minilm-l6-v2", "--target", "q", "--blocks", "7", "--format", "json"]
    found = runner.invoke(main, [*words, "--pad", "--method", "bora", "--method", "lora"])
    records = {record["method"]: record for record in json.loads(found.stdout)}
    assert records["bora"]["parameters"] == 6 * (384 + 384 + 49) * 8
    assert records["bora"]["rank_bound"] == 56
    assert records["lora"]["rank_bound"] == 8
    for more, part in ((["--method", "bora"], "--pad"), (["--method", "melora", "--pad"], "cannot be padded")):
        refused = runner.invoke(main, [*words, *more])
        assert refused.exit_code == 2
        assert part in refused.stderr
    both = runner.invoke(main, ["cost", "--pad", "--optimal-blocks"])
    assert both.exit_code == 2
    assert "leave out --pad" in both.stderr
    bought = runner.invoke(main, [*words[:5], "--pad", "--budget", "30k", "--method", "bora", "--format", "json"])
    assert {5, 7} < {record["blocks"] for record in json.loads(bought.stdout)}


def test_a_budget_with_padding_buys_every_b():
    shapes, budget = [(12, 10), (7, 12)], 200
    expected = {
        (r, b): (sum(one.parameters for one in each), sum(one.rank_bound for one in each) / 2)
        for r in range(1, 8)
        for b in range(2, 8)
        for each in [[cost("bora", m, n, r, blocks=b, pad=True) for m, n in shapes]]
        if sum(one.parameters for one in each) <= budget
    }
    found = within_budget(shapes, budget, methods=["bora", "lora"], at_least=0, pad=True)
    own = {(one.r, one.blocks): (one.parameters, one.rank_bound) for one in found if one.method == "bora"}
    assert own == expected
    assert any(one.method == "lora" for one in found)
    with pytest.raises(ValueError, match="lora cannot be padded; methods that can: bora"):
        within_budget(shapes, budget, methods=["lora"], pad=True)
