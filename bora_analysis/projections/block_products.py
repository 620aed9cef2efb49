"""BoRA: blocks B_i diag(s_ij) A_j nearest to the blocks T_ij, by alternating least squares.

With ∘ elementwise, each of these steps has a closed form and lowers ‖T − X‖_F:

* s_ij:  (B_iᵀB_i ∘ A_jA_jᵀ) s_ij = diag(B_iᵀ T_ij A_jᵀ), one r×r system for each pair;
* B_i:  B_i [Σ_j diag(s_ij) A_jA_jᵀ diag(s_ij)] = Σ_j T_ij A_jᵀ diag(s_ij);  A_j the same, transposed.

They begin with the truncated SVD and s = 1, so that BoRA is never below LoRA of the same r, or with random factors.

**Activations** (BoRA, arXiv 2508.06953, eq. 5 and §4.3) restrict s. ``identity`` and ``no-exp`` allow every s, because
the mean of |s| can move into B. ``no-norm`` allows s > 0. ``exp-norm`` has s > 0 with a mean of |log s| of 1. Scales of
rows and columns of s can move into B_i and A_j, log s_ij + a_i + c_j, so that s is possible if for some a and c the
mean of |log s + a + c| is at most 1. Where it is more, the log s farthest from a + c are cut off until the mean is 1.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..linalg import Array
from ..linalg.qr import thin_qr
from .target import ENOUGH, Target, Wish

#: Most sweeps. To go on, each must find this share of the missing energy, or of 10 times the captured if that is less,
#: or of 1e-4 if less than that is missing.
SWEEPS, GAIN = 300, 1e-5
#: With more entries than this, what T is multiplied by is found in float32, and finished in float64.
COARSE = 2**20
#: How far beyond the last sweep's end, in its lengths, the next one may begin.
FARTHEST = 20.0
#: Most sweeps with any s before it must be positive, and over B and A while s is held in its range.
FREE, HELD = 20, 100
#: Tries to move s within its range.
ROUNDS = 8
#: exp is never 0: what stands for s = 0, relative to the largest s of its slot.
_LEAST = 1e-13

Diagonals = Callable[[Array, Array, Array], Array]  # H (b, b, r, r), right sides and the last s (b, b, r) → s


def nearest(target: Target, wish: Wish) -> tuple[dict[str, Array], float]:
    """The parts B (m, r), A (r, n) and raw σ (b, b, r), and the captured energy."""
    b, r = wish.blocks, wish.r
    blocks, Q, P = _reduced(target, b)
    _, _, p, q = blocks.shape
    if wish.start == 0:
        B, A, lora = target.pair(r)
        B = Q.transpose(0, 2, 1) @ B.reshape(b, -1, r)
        A = A.reshape(r, b, -1).transpose(1, 0, 2) @ P
    else:
        rng, lora = np.random.default_rng(wish.start), 0.0
        B, A = rng.standard_normal((b, p, r)), rng.standard_normal((b, r, q))
    positive = wish.activation in ("exp-norm", "no-norm")
    start, (s, captured) = (B, np.ones((b, b, r)), A), (np.ones((b, b, r)), lora)
    coarse = blocks.astype(np.float32) if blocks.size > COARSE else blocks
    if lora <= 1 - ENOUGH:  # else a LoRA of this r is T itself
        B, s, A, captured = _alternate(coarse, *start, _any, FREE if positive else SWEEPS)
        if positive:
            B, s, A, _ = _alternate(coarse, *_mostly_positive(B, s, A), _positive)
    if positive:
        B, s, A, captured = _in_range(coarse, B, s, A)
        if wish.activation == "no-norm":  # a wider set, so that this can only gain
            B, s, A = _unit(*_alternate(coarse, B, s, A, _positive)[:3])
            B, s, A, captured = _alternate(coarse, B, _above_zero(s), A, _fixed)
    if coarse is not blocks:
        B, s, A, captured = _alternate(blocks, B, s, A, _fixed if positive else _any)
    if positive and wish.start == 0 and captured < lora:
        B, s, A, captured = _in_range(blocks, *start)
    whole = (Q @ B).reshape(-1, r)
    right = (A @ P.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(r, -1)
    if wish.activation == "no-exp":
        whole = whole * np.abs(s).mean()  # by which σ is divided
    return {"B": whole, "A": right, "sigma": np.log(s) if positive else s}, captured


def _reduced(target: Target, b: int) -> tuple[Array, Array, Array]:
    """The blocks of T in orthonormal bases Q_i and P_j in which the minimum lies: T_ij = Q_i X_ij P_jᵀ.

    X (b, b, p, q), Q (b, m/b, p), P (b, n/b, q). Where T has thin factors, T_ij = Q_i (R_i L_jᵀ) P_jᵀ is small.
    """
    (m, n), k = target.shape, target.left.shape[1]
    if k >= max(m, n) // b:  # no smaller
        whole = target.dense() if target.whole is None else target.whole
        blocks = whole.reshape(b, m // b, b, n // b).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(blocks), np.eye(m // b)[None], np.eye(n // b)[None]
    Q, R = zip(*(thin_qr(rows) for rows in np.split(target.left, b)), strict=True)
    P, L = zip(*(thin_qr(columns.T) for columns in np.split(target.right, b, axis=1)), strict=True)
    return np.stack(R)[:, None] @ np.stack(L).transpose(0, 2, 1)[None], np.stack(Q), np.stack(P)


def _alternate(
    T: Array, B: Array, s: Array, A: Array, diagonals: Diagonals, sweeps: int = SWEEPS
) -> tuple[Array, Array, Array, float]:
    """Sweeps over s, B and A until the missing energy hardly falls.

    Each begins beyond where the last one ended, in its direction, and farther each time that this pays; where it does
    not, at the end of the last one. So a third of the sweeps do, and none loses energy.
    """
    turned = np.ascontiguousarray(T.transpose(1, 0, 3, 2))
    captured, reach = -1.0, 1.0
    before: tuple[Array, Array, Array] | None = None
    for _ in range(sweeps):
        here = (B, s, A) if diagonals is _fixed else _unit(B, s, A)
        ahead = here
        if before is not None:
            Bs, ss, As = (x + reach * (x - old) for x, old in zip(here, before, strict=True))
            ahead = Bs, ss, As
        found = _sweep(T, turned, *ahead, diagonals)
        if found[3] >= captured:
            reach, before = min(1.3 * reach, FARTHEST), here
        else:
            reach, before = max(reach / 2, 0.5), None
            found = _sweep(T, turned, *here, diagonals)
        B, s, A, now = found
        gain, captured = now - captured, now
        if gain <= GAIN * max(min(1 - captured, 10 * captured), 1e-4):
            break
    return B, s, A, captured


def _sweep(
    T: Array, turned: Array, B: Array, s: Array, A: Array, diagonals: Diagonals
) -> tuple[Array, Array, Array, float]:
    B, s, _ = _half(T, B, s, A, diagonals)
    A, s, captured = _half(turned, A.transpose(0, 2, 1), s.transpose(1, 0, 2), B.transpose(0, 2, 1), diagonals)
    return B, s.transpose(1, 0, 2), A.transpose(0, 2, 1), captured


def _unit(B: Array, s: Array, A: Array) -> tuple[Array, Array, Array]:
    """The same blocks with unit columns of B_i and rows of A_j."""
    b, a = np.linalg.norm(B, axis=1), np.linalg.norm(A, axis=2)
    b, a = np.where(b > 0, b, 1.0), np.where(a > 0, a, 1.0)
    return B / b[:, None], s * b[:, None] * a[None], A / a[..., None]


def _half(T: Array, B: Array, s: Array, A: Array, diagonals: Diagonals) -> tuple[Array, Array, float]:
    """s, then B, then s, with A fixed; and the captured energy."""
    seen = (T @ A.astype(T.dtype).transpose(0, 2, 1)[None]).astype(np.float64)  # T_ij A_jᵀ (b, b, p, r)
    grams = A @ A.transpose(0, 2, 1)

    def best(s: Array) -> tuple[Array, float]:
        H = (B.transpose(0, 2, 1) @ B)[:, None] * grams[None]
        right = np.einsum("ipk,ijpk->ijk", B, seen)
        s = diagonals(H, right, s)
        return s, float((s * (2 * right - (H @ s[..., None])[..., 0])).sum())

    s, _ = best(s)
    sums = np.einsum("ijpk,ijk->ikp", seen, s)
    B = _solve(np.einsum("ijk,jkl,ijl->ikl", s, grams, s, optimize=True), sums).transpose(0, 2, 1)
    s, captured = best(s)
    return B, s, captured


def _solve(H: Array, right: Array) -> Array:
    """Solutions of positive semidefinite systems; the ridge keeps singular ones solvable and is far below rounding's
    effect on the energy."""
    r = H.shape[-1]
    ridge = 1e-13 * np.trace(H, axis1=-2, axis2=-1)[..., None, None]
    return np.linalg.solve(H + np.where(ridge > 0, ridge, 1.0) * np.eye(r), right)


def _any(H: Array, right: Array, _: Array) -> Array:
    return _solve(H, right[..., None])[..., 0]


def _positive(H: Array, right: Array, s: Array) -> Array:
    """Least squares with s ≥ 0: one coordinate after another, five times, from the last s on."""
    s = np.maximum(s, 0.0)
    for _ in range(5):
        for k in range(s.shape[-1]):
            slope = right[..., k] - (H[..., k, :] * s).sum(-1)
            s[..., k] = np.maximum(s[..., k] + slope / np.maximum(H[..., k, k], np.finfo(float).tiny), 0.0)
    return s


def _mostly_positive(B: Array, s: Array, A: Array) -> tuple[Array, Array, Array]:
    """The same blocks, with signs moved from s into B_i and A_j until most of s is positive."""
    a, c = np.ones(s.shape[1:]), np.ones(s.shape[1:])
    for _ in range(10):
        a = np.where((s * c[None]).sum(1) < 0, -1.0, 1.0)
        c = np.where((s * a[:, None]).sum(0) < 0, -1.0, 1.0)
    return B * a[:, None], s * a[:, None] * c[None], A * c[..., None]


def _fixed(_: Array, __: Array, s: Array) -> Array:
    return s


def _in_range(T: Array, B: Array, s: Array, A: Array) -> tuple[Array, Array, Array, float]:
    """The best s > 0 found with mean |log s| = 1, and its B and A."""
    best: tuple[Array, Array, Array, float] | None = None
    for _ in range(ROUNDS):
        B, s, A = _unit(B, s, A)
        logs = np.log(_above_zero(s))
        a, c = _additive(logs)
        rest = logs - a[:, None] - c[None]
        cut = _root(lambda cut, rest=rest: np.minimum(np.abs(rest), cut).mean() - 1, float(np.abs(rest).max()))
        s, B, A = np.exp(np.clip(rest, -cut, cut)), B * np.exp(a)[:, None], A * np.exp(c)[..., None]
        B, _, A, captured = _alternate(T, B, s, A, _fixed, HELD)
        if best is not None and captured <= best[3]:
            break
        best = B, s, A, captured
        if cut >= np.abs(rest).max():
            break
        B, s, A, _ = _alternate(T, B, s, A, _positive, 1)
    assert best is not None
    B, s, A, captured = best
    logs = np.log(s)
    shift = _root(lambda shift: np.abs(logs + shift).mean() - 1, 2 + float(np.abs(logs).max()))
    return B * np.exp(-shift), np.exp(logs + shift), A, captured  # the same ΔW; a common factor makes the mean 1


def _above_zero(s: Array) -> Array:
    top = s.max((0, 1))
    return np.maximum(s, np.where(top > 0, _LEAST * top, 1.0))


def _additive(logs: Array) -> tuple[Array, Array]:
    """a (b, r) and c (b, r) with a small mean of |logs_ijk − a_ik − c_jk|: rows' and columns' medians in turn."""
    a = c = np.zeros(logs.shape[1:])
    for _ in range(20):
        a = np.median(logs - c[None], axis=1)
        c = np.median(logs - a[:, None], axis=0)
    return a, c


def _root(rising: Callable[[float], float], high: float) -> float:
    """Where a function that rises on [0, high] is 0; ``high`` where it stays below."""
    if rising(high) <= 0:
        return high
    low = 0.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return low
