"""Claims on rank (§3.3, Appendix F)."""

from __future__ import annotations

import numpy as np
from numpy.linalg import matrix_rank

from ...adapters.synthetic import Synthetic, synthetic_adapter
from ...analysis.spectrum import FactorRanks, factor_ranks, singular_values
from ...updates.blocks import bora
from .common import Finding, claim, draws, verdict


@claim("C5", "§3.3, eq. 7", "rank(ΔW) ≤ min(m, n, br)")
def bound() -> Finding:
    cases = reached = above = 0
    for B, A, sigma in draws(1500, seed=5, whole=3):
        update = bora(B, A, sigma, activation="identity")
        rank, most = matrix_rank(update.to_dense()), min(len(B), A.shape[1], sigma.shape[0] * sigma.shape[2])
        cases, reached, above = cases + 1, reached + (rank == most), above + (rank > most)
    return Finding(
        verdict(above == 0), f"{cases:,} layers of whole numbers: {above} above the bound, {reached:,} reach it"
    )


@claim(
    "C6",
    "§3.3, App. F",
    "Σ breaks the correlation of the blocks: rank Σ' = Σ_k rank S_k, S_k = [Σ_ij[k]]_ij; r for LoRA, br for "
    "MELoRA and a random σ",
)
def slots() -> Finding:
    unequal = cases = 0
    for B, A, sigma in draws(400, seed=6, whole=1):
        update = bora(B, A, sigma, activation="identity")
        split = sum(matrix_rank(slot) for slot in update.slots())
        unequal, cases = unequal + (split != matrix_rank(update.expanded().sigma)), cases + 1
    size, b, r = 64, 8, 4
    B, A = np.ones((size, r)), np.ones((r, size))
    raw = Synthetic("bora", {"q": (size, size)}, r, b, kind="init")["q"]["sigma"]
    ranks = {}
    for name, sigma, activation in (
        ("LoRA", np.ones((b, b, r)), "identity"),
        ("MELoRA", np.broadcast_to(np.eye(b)[:, :, None], (b, b, r)), "identity"),
        ("BoRA", raw, "exp-norm"),
    ):
        slots = bora(B, A, sigma, activation=activation).slots()
        ranks[name] = [matrix_rank(slot) for slot in slots]
    expected = {"LoRA": [1] * r, "MELoRA": [b] * r, "BoRA": [b] * r}
    totals = ", ".join(f"{name} {r}·{found[0]} = {sum(found)}" for name, found in ranks.items())
    return Finding(
        verdict(unequal == 0 and ranks == expected),
        f"{cases} σ of whole numbers: {unequal} unequal; r = {r}, b = {b}: rank Σ' is {totals}",
    )


@claim("C7", "§3.3, Prop. 1", "the bound is achieved when B', Σ' and A' have full rank")
def full_rank_factors() -> Finding:
    inside = short_inside = beyond = short_beyond = 0
    for B, A, sigma in draws(1500, seed=7, whole=1):
        b, _, r = sigma.shape
        m, n, inner = len(B), A.shape[1], b * r
        update = bora(B, A, sigma, activation="identity")
        full_ranks = min(m, inner), inner, min(n, inner)
        if any(matrix_rank(factor) < full for factor, full in zip(update.expanded(), full_ranks, strict=True)):
            continue
        short = matrix_rank(update.to_dense()) < min(m, n, inner)
        if inner <= max(m, n):
            inside, short_inside = inside + 1, short_inside + short
        else:
            beyond, short_beyond = beyond + 1, short_beyond + short
    limits, rank = counterexample()
    fails = (limits.B, limits.sigma, limits.A) == (2, 4, 2) and rank < limits.bound
    return Finding(
        verdict(not (fails or short_inside or short_beyond), inside > 0 and not short_inside),
        f"where the three factors have full rank, {short_inside} of {inside:,} layers with br ≤ max(m, n) stay below "
        f"the bound and {short_beyond} of {beyond:,} with br > max(m, n); counterexample b = r = m = n = 2, "
        f"B_i = [1 0], A_j = [0 1]ᵀ: ranks {limits.B}, {limits.sigma}, {limits.A}, rank ΔW = {rank}, "
        f"bound {limits.bound}",
    )


def counterexample() -> tuple[FactorRanks, int]:
    """Three factors of full rank whose product is 0."""
    B, A = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[0.0, 0.0], [1.0, 1.0]])
    update = bora(B, A, np.random.default_rng(0).standard_normal((2, 2, 2)))
    return factor_ranks(update), matrix_rank(update.to_dense())


@claim("C8", "App. F", "random (generic) factors reach the bound, as trained ones typically do")
def generic_factors() -> Finding:
    cases = short = beyond = 0
    for B, A, sigma in draws(400, seed=8):
        b, _, r = sigma.shape
        m, n = len(B), A.shape[1]
        # Far above rounding, far below what random factors of this size come near to in these draws.
        rank = int(matrix_rank(bora(B, A, sigma).to_dense(), rtol=1e-11))
        cases, short, beyond = cases + 1, short + (rank < min(m, n, b * r)), beyond + (b * r > max(m, n))
    return Finding(
        verdict(short == 0),
        f"{cases} layers of normal numbers, {beyond} of them with br > max(m, n): {short} below min(m, n, br)",
    )


@claim("C14", "App. F", "at the start B = 0 and rank(ΔW) = 0, while Σ' and A' have full rank")
def rank_at_start() -> Finding:
    m, r, b = 256, 4, 8
    update = synthetic_adapter("bora", {"q": (m, m)}, r, b, kind="init")["q"]
    limits, largest = factor_ranks(update), singular_values(update).values.max()
    zero = limits.B == 0 and largest == 0
    return Finding(
        verdict(zero and (limits.sigma, limits.A) == (b * r, b * r)),
        f"m = n = {m}, r = {r}, b = {b} as initialised: rank B' = {limits.B}, rank Σ' = {limits.sigma}, "
        f"rank A' = {limits.A}, largest singular value of ΔW {largest:g}",
    )
