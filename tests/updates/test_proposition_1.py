"""Proposition 1 (BoRA §3.3): rank(ΔW) ≤ min{m, n, br}, when it is reached, and where the paper's claim is too strong.

Factors of small whole numbers, so that ΔW is exact in float64 and its rank is found without a tolerance.
"""

from __future__ import annotations

import numpy as np
import pytest
from cases import exact_rank
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bora_analysis import bora, factor_ranks
from bora_analysis.catalogue import ACTIVATIONS

sizes = {"b": st.integers(1, 4), "p": st.integers(1, 3), "q": st.integers(1, 3), "r": st.integers(1, 3)}
seeds = st.integers(0, 2**32 - 1)


def whole(b, p, q, r, seed, high=3):
    r = min(r, b * max(p, q))
    rng = np.random.default_rng(seed)
    B = rng.integers(-high, high + 1, (b * p, r)).astype(float)
    A = rng.integers(-high, high + 1, (r, b * q)).astype(float)
    sigma = rng.integers(-high, high + 1, (b, b, r)).astype(float)
    return bora(B, A, sigma, activation="identity")


@settings(max_examples=1000)
@given(**sizes, seed=seeds, high=st.sampled_from([1, 3]))
def test_the_bound_and_the_tighter_bound_always_hold(b, p, q, r, seed, high):
    update = whole(b, p, q, r, seed, high)
    B, sigma, A = update.expanded()
    rank = exact_rank(update.to_dense())
    ranks = exact_rank(B), exact_rank(sigma), exact_rank(A)
    inner = sigma.shape[0]
    assert rank <= min(b * p, b * q, inner) == update.facts.rank_bound
    assert rank <= min(ranks)
    assert rank >= sum(ranks) - 2 * inner  # Sylvester
    limits = factor_ranks(update)
    assert (limits.B, limits.sigma, limits.A) == ranks
    assert limits.lower <= rank <= limits.upper <= limits.bound


@settings(max_examples=1000)
@given(**sizes, seed=seeds)
def test_full_rank_factors_reach_the_bound_while_br_is_at_most_max_m_n(b, p, q, r, seed):
    update = whole(b, p, q, r, seed)
    B, sigma, A = update.expanded()
    m, n, inner = b * p, b * q, sigma.shape[0]
    assume(inner <= max(m, n))
    assume(exact_rank(B) == min(m, inner) and exact_rank(A) == min(n, inner) and exact_rank(sigma) == inner)
    assert exact_rank(update.to_dense()) == min(m, n, inner)


def test_counterexample_beyond_max_m_n():
    """All three factors have full rank and ΔW = 0: the paper's "achieved when" needs br ≤ max(m, n)."""
    B = np.array([[1.0, 0.0], [1.0, 0.0]])  # B_1 = B_2 = [1 0]
    A = np.array([[0.0, 0.0], [1.0, 1.0]])  # A_1 = A_2 = [0 1]ᵀ
    sigma = np.random.default_rng(0).standard_normal((2, 2, 2))
    update = bora(B, A, sigma)  # b = r = m = n = 2, br = 4
    limits = factor_ranks(update)
    assert (limits.B, limits.sigma, limits.A) == (2, 4, 2)
    assert limits.bound == limits.upper == 2
    assert limits.lower == 0
    assert not update.to_dense().any()


@settings(max_examples=300)
@given(**sizes, seed=seeds)
def test_generic_factors_reach_the_bound_at_any_br(b, p, q, r, seed):
    r = min(r, b * max(p, q))
    rng = np.random.default_rng(seed)
    B, A = rng.standard_normal((b * p, r)), rng.standard_normal((r, b * q))
    update = bora(B, A, rng.standard_normal((b, b, r)))
    # Far above rounding, far below what random factors of this size come near to in 300 draws.
    assert np.linalg.matrix_rank(update.to_dense(), rtol=1e-11) == min(b * p, b * q, b * r)


@settings(max_examples=200)
@given(**sizes, seed=seeds)
def test_limiting_names_the_smallest_factor(b, p, q, r, seed):
    limits = factor_ranks(whole(b, p, q, r, seed, high=1))
    ranks = {"B'": limits.B, "Σ'": limits.sigma, "A'": limits.A}
    assert set(limits.limiting) == {name for name, rank in ranks.items() if rank == min(ranks.values())}


def by_definition(B, A, S, rows, columns):
    """Eq. 4, block by block, for blocks of any sizes."""
    cut_B, cut_A = np.split(B, np.cumsum(rows)[:-1]), np.split(A, np.cumsum(columns)[:-1], axis=1)
    return np.block([[cut_B[i] @ np.diag(S[i, j]) @ cut_A[j] for j in range(len(columns))] for i in range(len(rows))])


@settings(max_examples=400)
@given(**sizes, seed=seeds, high=st.sampled_from([1, 3]))
def test_the_cores_have_the_rank_and_the_spectrum_of_eq_4(b, p, q, r, seed, high):
    """ΔW by its definition in whole numbers: its rank is exact, and a core of A_i in place of A_j would show."""
    r = min(r, b * max(p, q))
    rng = np.random.default_rng(seed)
    B, A, S = (rng.integers(-high, high + 1, shape).astype(float) for shape in ((b * p, r), (r, b * q), (b, b, r)))
    delta = by_definition(B, A, S, [p] * b, [q] * b)
    update = bora(B, A, S, activation="identity")
    np.testing.assert_array_equal(update.to_dense(), delta)
    values = np.concatenate([np.linalg.svd(core, compute_uv=False).ravel() for core in update.cores()])
    values = np.sort(values)[::-1]
    expected = np.linalg.svd(delta, compute_uv=False)
    expected = np.pad(expected, (0, max(0, values.size - expected.size)))[: values.size]
    reach = 1e-12 * max(1.0, float(np.linalg.norm(delta)))
    np.testing.assert_allclose(values, expected, rtol=0, atol=reach)
    assert np.count_nonzero(values > 100 * reach) == exact_rank(delta) <= update.facts.rank_bound


def sigma_of(S, activation):
    """σ whose Σ is S, a positive array, up to a common factor, which changes no rank."""
    if activation in ("identity", "no-exp"):
        return S
    if activation == "no-norm":
        return np.log(S)
    # exp-norm: u = log S − t with mean |u| = 1, which has a t where log S spreads by at most 1 about its median.
    low, high = float(np.median(np.log(S))), float(np.log(S).max()) + 2.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.abs(np.log(S) - middle).mean() < 1 else (low, middle)
    return np.log(S) - low


@pytest.mark.parametrize("activation", ACTIVATIONS)
@settings(max_examples=60)
@given(**sizes, seed=seeds)
def test_each_activation_reaches_the_bound_at_any_br(activation, b, p, q, r, seed):
    """docs/theory.md: one Σ in the activation's range that reaches it proves that almost all do. Its rank is exact."""
    r = min(r, b * max(p, q))
    rng = np.random.default_rng(seed)
    best = None
    for _ in range(40):
        B, A = (rng.integers(-3, 4, shape).astype(float) for shape in ((b * p, r), (r, b * q)))
        S = rng.integers(1, 5, (b, b, r)).astype(float)  # positive, so that every activation has it
        if exact_rank(by_definition(B, A, S, [p] * b, [q] * b)) == min(b * p, b * q, b * r):
            best = B, A, S
            break
    assert best is not None
    B, A, S = best
    update = bora(B, A, sigma_of(S, activation), activation=activation)
    _, spread, _ = update.expanded()
    of_S = np.block([[np.diag(S[i, j]) for j in range(b)] for i in range(b)])
    factor = spread[0, 0] / of_S[0, 0]
    np.testing.assert_allclose(spread, factor * of_S, rtol=1e-9, atol=0)
    assert factor > 0


@settings(max_examples=60)
@given(m=st.integers(1, 9), n=st.integers(1, 9), b=st.integers(1, 5), r=st.integers(1, 3), seed=seeds)
def test_blocks_that_do_not_divide(m, n, b, r, seed):
    """docs/theory.md: blocks of ⌈m/b⌉ rows, the last ones smaller or empty, as padding and cutting would have them."""

    def cut(size):
        block = -(-size // b)
        return [max(0, min(block, size - i * block)) for i in range(b)]

    rows, columns = cut(m), cut(n)
    bound = min(sum(min(k, r) for k in rows), sum(min(k, r) for k in columns))
    rng = np.random.default_rng(seed)
    ranks = []
    for _ in range(40):
        B, A = (rng.integers(-3, 4, shape).astype(float) for shape in ((m, r), (r, n)))
        S = rng.integers(1, 5, (b, b, r)).astype(float)
        ranks.append(exact_rank(by_definition(B, A, S, rows, columns)))
        if ranks[-1] == bound:
            break
    assert max(ranks) == bound <= min(m, n, b * r)
