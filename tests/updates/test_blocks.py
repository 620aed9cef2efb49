"""Identities of the factored form (BoRA, arXiv 2508.06953, eq. 4–8) and its validation."""

from __future__ import annotations

import numpy as np
import pytest
from cases import STRUCTURES, exact_rank, updates
from hypothesis import given, settings
from hypothesis import strategies as st

from bora_analysis import FactorError, activate, bora, factor_ranks, lora, melora, singular_values
from bora_analysis.updates.contract import Blocked
from bora_analysis.updates.dense import dense


def random_bora(seed: int = 0, b: int = 3, p: int = 4, q: int = 5, r: int = 2):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((b * p, r)), rng.standard_normal((r, b * q)), rng.standard_normal((b, b, r))


@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=200)
@given(data=st.data())
def test_blocks_equal_product_of_three(structure, data):
    """eq. 4, block by block, equals to_dense and eq. 6, B'Σ'A'."""
    update, dense = data.draw(updates(structure))
    B, sigma, A = update.expanded()
    size = max(1.0, float(np.prod([np.linalg.norm(factor, 2) for factor in (B, sigma, A)])))
    np.testing.assert_allclose(update.to_dense(), dense, rtol=0, atol=1e-12 * size)
    np.testing.assert_allclose(B @ sigma @ A, dense, rtol=0, atol=1e-12 * size)
    left, right = update.factors()
    np.testing.assert_allclose(left @ right, dense, rtol=0, atol=1e-12 * size)
    assert left.shape[1] == right.shape[0] <= min(dense.shape)
    assert left.dtype == right.dtype == np.float64
    assert dense.shape == (update.facts.out_features, update.facts.in_features)


@pytest.mark.parametrize("activation", ["exp-norm", "no-exp", "no-norm", "identity"])
def test_forward_of_eq_8_equals_the_dense_product(activation):
    B, A, sigma = random_bora()
    update = bora(B, A, sigma, scaling=0.5, activation=activation)
    X = np.random.default_rng(1).standard_normal((15, 7))
    diagonals = activate(sigma, activation)
    b, p, q = 3, 4, 5
    Y = np.concatenate([
        B[j * p : (j + 1) * p] @ sum(
            np.diag(diagonals[j, k]) @ A[:, k * q : (k + 1) * q] @ X[k * q : (k + 1) * q] for k in range(b)
        )
        for j in range(b)
    ])  # fmt: skip
    np.testing.assert_allclose(update.to_dense() @ X, 0.5 * Y, rtol=1e-12)


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), b=st.integers(1, 6))
def test_lora_is_bora_with_identity_for_any_b(seed, b):
    B, A, _ = random_bora(seed, b)
    ones = np.ones((b, b, 2))
    np.testing.assert_allclose(
        bora(B, A, ones, scaling=2, activation="identity").to_dense(), lora(B, A, scaling=2).to_dense(), rtol=1e-13
    )
    np.testing.assert_allclose(bora(B, A, 0 * ones).to_dense(), lora(B, A).to_dense(), rtol=1e-13)  # σ = 0: Σ = I


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32 - 1), b=st.integers(1, 6))
def test_melora_is_bora_with_the_identity_on_the_diagonal(seed, b):
    B, A, _ = random_bora(seed, b)
    delta = np.eye(b)[:, :, None] * np.ones(2)
    minis = melora(np.split(B, b), np.split(A, b, axis=1), scaling=3)
    np.testing.assert_allclose(
        bora(B, A, delta, scaling=3, activation="identity").to_dense(), minis.to_dense(), rtol=1e-13
    )
    assert minis.facts.rank_bound == bora(B, A, delta).facts.rank_bound


@settings(max_examples=300)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_rank_of_sigma_is_the_sum_of_the_ranks_of_the_slots(b, r, seed):
    rng = np.random.default_rng(seed)
    sigma = rng.integers(-1, 2, (b, b, r)).astype(float)
    update = bora(np.ones((4 * b, r)), np.ones((r, 4 * b)), sigma, activation="identity")
    assert exact_rank(update.expanded().sigma) == sum(exact_rank(slot) for slot in update.slots())


@pytest.mark.parametrize("shape", [(5, 7), (7, 5)])
def test_a_dense_update_is_its_own_core(shape):
    matrix = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    update = dense(matrix)
    left, right = update.factors()
    assert left.shape[1] == update.facts.rank_bound == 5
    np.testing.assert_array_equal(left @ right, matrix)
    np.testing.assert_array_equal(update.to_dense(), matrix)
    expected = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    np.testing.assert_allclose(singular_values(update).values, expected, rtol=1e-13)
    assert update.facts.dtype == "float32"
    with pytest.raises(FactorError, match="delta holds NaN"):
        dense(np.full((2, 2), np.nan))


def test_an_update_without_block_factors_says_so():
    update = dense(np.eye(3), method="loha")
    assert not isinstance(update, Blocked)
    assert isinstance(lora(np.ones((2, 1)), np.ones((1, 2))), Blocked)
    with pytest.raises(ValueError, match=r"loha has no B', Σ', A'"):
        factor_ranks(update)


def test_slots_show_the_mechanism():
    """§3: every S_k of LoRA is all ones (rank 1, so Σ' has rank r); of MELoRA the identity (rank b, so br)."""
    B, A, _ = random_bora(b=4)
    ones = bora(B, A, np.ones((4, 4, 2)), activation="identity")
    assert [np.linalg.matrix_rank(slot) for slot in ones.slots()] == [1, 1]
    diagonal = bora(B, A, np.eye(4)[:, :, None] * np.ones(2), activation="identity")
    assert [np.linalg.matrix_rank(slot) for slot in diagonal.slots()] == [4, 4]


def test_activations_by_hand():
    sigma = np.array([[[0.5], [-1.5]], [[0.0], [2.0]]])  # Mav = 1
    np.testing.assert_allclose(activate(sigma, "exp-norm").ravel(), np.exp([0.5, -1.5, 0, 2]))
    np.testing.assert_allclose(activate(3 * sigma, "exp-norm").ravel(), np.exp([0.5, -1.5, 0, 2]))
    np.testing.assert_allclose(activate(3 * sigma, "no-exp").ravel(), [0.5, -1.5, 0, 2])
    np.testing.assert_allclose(activate(sigma, "no-norm").ravel(), np.exp([0.5, -1.5, 0, 2]))
    assert (activate(0 * sigma, "no-exp") == 0).all()
    assert (activate(0 * sigma, "exp-norm") == 1).all()


def test_facts_count_parameters_and_multiply_adds():
    """math.md's table: (m+n)r for LoRA and MELoRA, (m+n+b²)r for BoRA; the bound is min(m, n, br)."""
    B, A, sigma = random_bora(b=3, p=4, q=5, r=2)
    assert lora(B, A).facts.parameters == lora(B, A).facts.macs_per_token == (12 + 15) * 2
    assert bora(B, A, sigma).facts.parameters == bora(B, A, sigma).facts.macs_per_token == (12 + 15 + 9) * 2
    minis = melora(np.split(B, 3), np.split(A, 3, axis=1), scaling=[1, 1, 2]).facts
    assert (minis.parameters, minis.rank_bound, minis.r, minis.blocks) == ((12 + 15) * 2, 6, 2, 3)
    assert np.isnan(minis.scaling)
    assert lora(B, A).facts.rank_bound == 2
    assert bora(B, A, sigma).facts.rank_bound == 6


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda B, A, s: lora(B, A.T), ["(12, 2)", "(15, 2)", "(m, r) and (r, n)"]),
        (lambda B, A, s: lora(B[0], A), ["B", "(2,)", "2 dimensions"]),
        (lambda B, A, s: lora(np.ones((2, 9)), np.ones((9, 2))), ["swapped"]),
        (lambda B, A, s: lora(B.astype(str), A), ["dtype"]),
        (lambda B, A, s: bora(B, A, s[:2]), ["sigma", "(2, 3, 2)", "(b, b, r)"]),
        (lambda B, A, s: bora(B, A, np.ones((3, 3, 1))), ["sigma", "(3, 3, 1)", "r = 2"]),
        (lambda B, A, s: bora(B, A, np.ones((2, 2, 2))), ["b = 2", "m = 12", "n = 15", "1, 3"]),
        (lambda B, A, s: bora(B, A, s, activation="relu"), ["relu", "exp-norm"]),
        (lambda B, A, s: bora(B, A, 1e4 * s, activation="no-norm"), ["sigma", "overflows"]),
        (lambda B, A, s: bora(B, A, np.where(s == s.max(), np.nan, s)), ["sigma", "NaN"]),
        (lambda B, A, s: lora(np.where(np.eye(12, 2, -2) > 0, np.inf, B), A), ["B", "Inf", "(2, 0)"]),
        (lambda B, A, s: melora([B], [A, A]), ["1 minis", "2"]),
        (lambda B, A, s: melora([B, B], [A, A.T]), ["mini 1"]),
        (lambda B, A, s: melora([B, B], [A, A], scaling=[1]), ["scaling", "1 values for 2"]),
    ],
)
def test_errors_carry_the_sizes(make, parts):
    with pytest.raises(FactorError) as caught:
        make(*random_bora())
    assert all(part in str(caught.value) for part in parts), caught.value
    assert "\n" not in str(caught.value)


def test_torch_tensors_keep_their_stored_dtype():
    torch = pytest.importorskip("torch")
    B = torch.ones(4, 1, dtype=torch.bfloat16, requires_grad=True)
    A = torch.ones(1, 3, dtype=torch.float16)
    update = lora(B, A)
    assert update.facts.dtype == "bfloat16"
    assert (update.to_dense() == 1).all()
    assert lora(np.ones((4, 1), np.float32), np.ones((1, 3)), dtype="bfloat16").facts.dtype == "bfloat16"


def test_float32_factors_whose_squares_overflow_are_finite():
    B = np.full((4, 1), 1e30, np.float32)
    assert lora(B, np.full((1, 4), 1e-30, np.float32)).facts.dtype == "float32"
