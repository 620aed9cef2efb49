"""Claims on the construction: equations 4 to 8 and the special cases."""

from __future__ import annotations

import numpy as np

from ...updates.blocks import bora, lora, melora
from .common import QUERY, SAME, Finding, block_by_block, difference, draws, forward_pass, verdict


def lora_is_bora() -> Finding:
    worst, cases = 0.0, 0
    for B, A, sigma in draws(100, seed=1):
        plain = lora(B, A).to_dense()
        ones = bora(B, A, np.ones_like(sigma), activation="identity")
        untouched = bora(B, A, np.zeros_like(sigma))
        worst = max(worst, *(difference(update.to_dense(), plain) for update in (ones, untouched)))
        cases += 1
    return Finding(
        verdict(worst <= SAME),
        f"{cases} random layers with b = 1 to 4, Σ = I given and from σ = 0: largest relative difference {worst:.1g}",
    )


def melora_is_bora() -> Finding:
    worst, cases = 0.0, 0
    for B, A, sigma in draws(100, seed=2, inside=True):
        b = len(sigma)
        minis = melora(np.split(B, b), np.split(A, b, axis=1)).to_dense()
        same = bora(B, A, np.broadcast_to(np.eye(b)[:, :, None], sigma.shape), activation="identity").to_dense()
        worst, cases = max(worst, difference(same, minis)), cases + 1
    return Finding(
        verdict(worst <= SAME),
        f"{cases} random layers with 1 to 4 minis, Σ_ij = δ_ij I: largest relative difference {worst:.1g}",
    )


def three_factors() -> Finding:
    worst, cases = 0.0, 0
    for B, A, sigma in draws(100, seed=3):
        update = bora(B, A, sigma)
        left, middle, right = update.expanded()
        worst, cases = max(worst, difference(left @ middle @ right, block_by_block(B, A, update.sigma))), cases + 1
    return Finding(verdict(worst <= SAME), f"{cases} random layers: largest relative difference {worst:.1g}")


def forward() -> Finding:
    worst, cases = 0.0, 0
    for B, A, sigma in draws(100, seed=4):
        update = bora(B, A, sigma)
        x = np.random.default_rng(cases).standard_normal(A.shape[1])
        out = forward_pass(B, A, update.sigma, x).out
        worst, cases = max(worst, difference(out, update.to_dense() @ x)), cases + 1
    return Finding(verdict(worst <= SAME), f"{cases} random layers: largest relative difference {worst:.1g}")


def row_from_row() -> Finding:
    rng = np.random.default_rng(20)
    m, _, r, b = QUERY
    found = {}
    for rows in (r, m // b):
        first, second, A1 = rng.standard_normal((rows, r)), rng.standard_normal((rows, r)), rng.standard_normal((r, 64))
        rebuilt = second @ np.linalg.pinv(first) @ (first @ A1)
        invertible = first.shape[0] == first.shape[1] and np.linalg.matrix_rank(first) == rows
        found[rows] = invertible, difference(rebuilt, second @ A1)
    exact = all(error <= 1e-9 for _, error in found.values())  # the pseudoinverse loses a few digits
    inverse, error = found[m // b]
    return Finding(
        verdict(exact and inverse, exact and found[r][0]),
        f"m = {m}, b = {b}: B_1 is {m // b}×{r}, of rank {r}, and has {'an' if inverse else 'no'} inverse, which needs "
        f"m/b = r; with the pseudoinverse B_2 B_1⁺ (B_1 A_1) is B_2 A_1 to {error:.0e}",
    )
