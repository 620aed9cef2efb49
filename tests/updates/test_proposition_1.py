"""Proposition 1 (BoRA §3.3): rank(ΔW) ≤ min{m, n, br}, when it is reached, and where the paper's claim is too strong.

Factors of small whole numbers, so that ΔW is exact in float64 and its rank is found without a tolerance.
"""

from __future__ import annotations

import numpy as np
from cases import exact_rank
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bora_analysis import bora, factor_ranks

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
