"""LoHa: (B₁ A₁) ∘ (B₂ A₂) nearest to T, by alternating least squares.

Row i of ΔW is b₁ᵢ (A₁ ∘ b₂ᵢ A₂): linear in b₁ᵢ, so that each row is a small system; the other factors the same. All
products of a row of A₁ with one of A₂ are the rows of Z (r², n), and everything goes through Z Zᵀ and T Zᵀ.
"""

from __future__ import annotations

import numpy as np

from ..linalg import Array
from .target import ENOUGH, Target, Wish

#: Most sweeps over the four factors; rows that are solved at once.
SWEEPS, ROWS = 200, 256


def nearest(target: Target, wish: Wish) -> tuple[dict[str, Array], float]:
    """Start 0: the truncated SVD ∘ ones, so that the result is never below LoRA of the same r."""
    (m, n), r = target.shape, wish.r
    rng = np.random.default_rng(wish.start)
    B1, A1, captured = target.pair(r)
    B2, A2 = np.zeros((m, r)), rng.standard_normal((r, n))
    if wish.start == 0:
        B2[:, 0], A2[0] = 1.0, 1.0
    else:
        B1, A1, B2 = rng.standard_normal((m, r)), rng.standard_normal((r, n)), rng.standard_normal((m, r))
        captured = -1.0
    turned = Target(target.right.T, target.left.T)
    for _ in range(SWEEPS):
        if captured > 1 - ENOUGH:
            break
        last = captured
        B1, _ = _rows(target, A1, B2, A2)
        B2, _ = _rows(target, A2, B1, A1)
        A1, _ = _rows(turned, B1.T, A2.T, B2.T)
        A2, captured = _rows(turned, B2.T, A1, B1.T)
        A1, A2 = A1.T, A2.T
        if captured - last <= 1e-5 * (1 - captured):
            break
    return {"w1_a": B1, "w1_b": A1, "w2_a": B2, "w2_b": A2}, captured


def _rows(target: Target, own: Array, B: Array, A: Array) -> tuple[Array, float]:
    """The X with the least ‖T − (X own) ∘ (B A)‖_F, and the captured energy. own, A (r, n); B, X (m, r)."""
    r = len(own)
    Z = (own[:, None] * A[None]).reshape(r * r, -1)
    grams = (Z @ Z.T).reshape(r, r, r, r)
    seen = (target.left @ (target.right @ Z.T)).reshape(-1, r, r)
    X, captured = np.empty(B.shape), 0.0
    for start in range(0, len(B), ROWS):
        b = B[start : start + ROWS]
        H = np.einsum("iakc,ia->ikc", np.tensordot(b, grams, (1, 3)).transpose(0, 2, 1, 3), b, optimize=True)
        right = np.einsum("ikl,il->ik", seen[start : start + ROWS], b)
        ridge = 1e-13 * np.trace(H, axis1=1, axis2=2)[:, None, None]
        x = np.linalg.solve(H + np.where(ridge > 0, ridge, 1.0) * np.eye(r), right[..., None])[..., 0]
        captured += float((x * (2 * right - (H @ x[..., None])[..., 0])).sum())
        X[start : start + ROWS] = x
    return X, captured
