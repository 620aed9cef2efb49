"""DeLoRA (arXiv 2503.18225): ΔW = B diag(λ / (r ‖A_i‖ ‖B_i‖)) A diag(w).

PEFT: ``<module>.delora_A`` (r, n), ``.delora_B`` (m, r), ``.delora_lambda`` (1,), and ``.delora_w_norm`` (n,), the
column norms of the frozen weight, which are saved, so that the base model is not needed (``delora/layer.py``).
"""

from __future__ import annotations

import math

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import fitted, read_parts
from ..linalg import Array
from ..linalg.gaussian import gaussian_triangle
from ..projections import Projection, Target, Wish
from ..updates.blocks import diagonal
from ..updates.contract import Update
from .file_form import Form, stored
from .random_factors import Null, Parts, Recipe, Sizes, Spec, orthonormal, pair, slots


def read(source: Source) -> Found | None:
    """DeLoRA as PEFT saves it."""
    return read_parts(source, "delora_(A|B|lambda|w_norm)", "delora", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    shapes = {"A": "delora_A (r, n)", "B": "delora_B (m, r)", "bound": "delora_lambda (1,)"}
    keys, sizes = fitted(source, parts, **shapes, norm="delora_w_norm (n,)")
    source.check_rank(module, keys["A"], sizes["r"])
    return source.loader(keys, build)


def build(B: Array, A: Array, bound: Array, norm: Array, *, dtype: str) -> Update:
    left, right = B.astype(np.float64), A.astype(np.float64)
    # PEFT keeps the norms above 1e-4, so that a zero row does not divide by zero.
    sizes = np.maximum(np.linalg.norm(left, axis=0), 1e-4) * np.maximum(np.linalg.norm(right, axis=1), 1e-4)
    d = float(bound[0]) / (len(A) * sizes)
    update = diagonal(B, d, right * norm, method="delora", parameters=B.size + A.size + 1, dtype=dtype)
    return update.with_facts(macs_per_token=update.facts.macs_per_token + norm.size)  # the norms multiply every input


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """The norms of the base's columns are 1.

    DeLoRA divides each slot by its norms, so that ΔW falls off only through directions that the slots share: those of B
    have the Gram matrix with the wished eigenvalues and ones on its diagonal.
    """
    r, norm = spec.r, np.ones(n, np.float32)
    if spec.kind == "init":  # PEFT's λ
        B, A = pair(spec, rng, m, n)
        return {"A": A, "B": B, "bound": np.array([15.0], np.float32), "norm": norm}
    A, B, bound = rng.standard_normal((r, n)), rng.standard_normal((m, r)), spec.scale * r
    if spec.kind == "decay" and r > 1:
        from scipy.stats import random_correlation  # here: a slow import

        squares = slots(spec, r) ** 2
        squares *= r / squares.sum()
        vectors = np.linalg.eigh(random_correlation.rvs(squares, random_state=rng, tol=1e-8)).eigenvectors
        A, B = orthonormal(A.T).T, orthonormal(B) @ (vectors * np.sqrt(squares[::-1])).T
        bound /= math.sqrt(squares[0])
    parts = {"A": A, "B": B, "bound": np.array([bound]), "norm": norm}
    # In order, as they are read from a file: sums over rows depend on it in their last bit.
    return {name: np.ascontiguousarray(part, np.float32) for name, part in parts.items()}


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    """Pairs of equal norms, which every matrix of rank r has (Schur and Horn): B Q and Qᵀ A for some rotation Q."""
    r = wish.r
    B, A, captured = target.pair(r)
    for i in range(r - 1):  # rotate two pairs at a time, until the squares of one are the mean
        squares = (B**2).sum(0)
        mean, rest = squares.sum() / r, np.arange(i, r)
        order = rest[np.argsort(squares[i:])]
        p, q = order[0], order[-1]
        ours, theirs, both = squares[p] - mean, squares[q] - mean, float(B[:, p] @ B[:, q])
        if theirs > 0:
            t = (-both + math.sqrt(max(both**2 - ours * theirs, 0.0))) / theirs  # ours + 2 t both + t² theirs = 0
            turn = np.array([[1.0, -t], [t, 1.0]]) / math.hypot(1.0, t)
            B[:, [p, q]], A[[p, q]] = B[:, [p, q]] @ turn, turn.T @ A[[p, q]]
        B[:, [i, p]], A[[i, p]] = B[:, [p, i]], A[[p, i]]
    bound = np.array([(np.linalg.norm(B, axis=0) * np.linalg.norm(A, axis=1)).sum()])
    return {"A": A, "B": B, "bound": bound, "norm": np.ones(A.shape[1])}, captured


FORMS = {
    "delora": Form(
        {"A": "delora_A", "B": "delora_B", "bound": "delora_lambda", "norm": "delora_w_norm"},
        lambda a, _, __: build(**a, dtype=stored(a)),
        lambda a: len(a["A"]),
        alpha=None,
    )
}


def null_cores(sizes: Sizes, rng: np.random.Generator) -> list[Array]:
    """Each slot divided by its norms; as if the base's columns had equal norms."""
    R, L = (gaussian_triangle(rng, size, sizes.r) for size in (sizes.m, sizes.n))
    R, L = (part / np.linalg.norm(part, axis=0) for part in (R, L))
    return [(R @ L.T)[None]]


NULLS = {"delora": Null(null_cores)}
RECIPES = {"delora": Recipe(random, most=lambda _, m, n: min(m, n))}
NEAREST = {"delora": Projection(nearest, scale="bound", same="lora")}
