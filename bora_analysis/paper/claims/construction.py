"""Claims on the construction: equations 4 to 8 and the special cases."""

from __future__ import annotations

import numpy as np

from ...linalg import Array
from ...updates.blocks import bora, lora, melora
from .common import QUERY, SAME, Finding, claim, draws, forward_pass, verdict


@claim("C1", "§3.5, fig. 1", "LoRA is BoRA with every Σ_ij = I, for any b")
def lora_is_bora() -> Finding:
    errors = []
    for B, A, sigma in draws(100, seed=1):
        plain = lora(B, A).to_dense()
        ones = bora(B, A, np.ones_like(sigma), activation="identity")
        untouched = bora(B, A, np.zeros_like(sigma))
        errors.append(max(_difference(update.to_dense(), plain) for update in (ones, untouched)))
    return _equal(errors, " with b = 1 to 4, Σ = I given and from σ = 0")


@claim("C2", "§3.5, fig. 1", "MELoRA is BoRA with Σ_ij = I for i = j and 0 otherwise")
def melora_is_bora() -> Finding:
    errors = []
    for B, A, sigma in draws(100, seed=2, inside=True):
        b = len(sigma)
        minis = melora(np.split(B, b), np.split(A, b, axis=1)).to_dense()
        same = bora(B, A, np.broadcast_to(np.eye(b)[:, :, None], sigma.shape), activation="identity").to_dense()
        errors.append(_difference(same, minis))
    return _equal(errors, " with 1 to 4 minis, Σ_ij = δ_ij I")


@claim("C3", "eq. 4, eq. 6", "ΔW = B' Σ' A' is the same matrix as ΔW_ij = B_i Σ_ij A_j")
def three_factors() -> Finding:
    errors = []
    for B, A, sigma in draws(100, seed=3):
        update = bora(B, A, sigma)
        left, middle, right = update.expanded()
        errors.append(_difference(left @ middle @ right, _block_by_block(B, A, update.sigma)))
    return _equal(errors)


@claim("C4", "eq. 8", "Y_j = B_j Σ_k Σ_jk A_k X_k is ΔW X")
def forward() -> Finding:
    errors = []
    for case, (B, A, sigma) in enumerate(draws(100, seed=4)):
        update = bora(B, A, sigma)
        x = np.random.default_rng(case).standard_normal(A.shape[1])
        errors.append(_difference(forward_pass(B, A, update.sigma, x).out, update.to_dense() @ x))
    return _equal(errors)


@claim("C20", "§3.1", "if rank(B_1) = r, B_1⁻¹ exists, and B_2 B_1⁻¹ makes the second block row of the first")
def row_from_row() -> Finding:
    rng = np.random.default_rng(20)
    m, _, r, b = QUERY
    found = {}
    for rows in (r, m // b):
        first, second, A1 = rng.standard_normal((rows, r)), rng.standard_normal((rows, r)), rng.standard_normal((r, 64))
        rebuilt = second @ np.linalg.pinv(first) @ (first @ A1)
        invertible = first.shape[0] == first.shape[1] and np.linalg.matrix_rank(first) == rows
        found[rows] = invertible, _difference(rebuilt, second @ A1)
    exact = all(error <= 1e-9 for _, error in found.values())  # the pseudoinverse loses a few digits
    inverse, error = found[m // b]
    return Finding(
        verdict(exact and inverse, exact and found[r][0]),
        f"m = {m}, b = {b}: B_1 is {m // b}×{r}, of rank {r}, and has {'an' if inverse else 'no'} inverse, which needs "
        f"m/b = r; with the pseudoinverse B_2 B_1⁺ (B_1 A_1) is B_2 A_1 to {error:.0e}",
    )


def _equal(errors: list[float], which: str = "") -> Finding:
    worst = max(errors)
    return Finding(
        verdict(worst <= SAME), f"{len(errors)} random layers{which}: largest relative difference {worst:.1g}"
    )


def _difference(one: Array, other: Array) -> float:
    return float(np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(float).tiny))


def _block_by_block(B: Array, A: Array, diagonals: Array) -> Array:
    """ΔW by eq. 4, one block at a time, without code from :mod:`bora_analysis.updates`."""
    rows, columns = np.split(B, len(diagonals)), np.split(A, len(diagonals), axis=1)
    return np.block(
        [[rows[i] @ np.diag(diagonals[i, j]) @ columns[j] for j in range(len(columns))] for i in range(len(rows))]
    )
