"""Updates of every structure, and dense oracles that share no code with the package."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from bora_analysis import bora, lora, melora

STRUCTURES = ("lora", "melora", "melora-unequal", "bora")  # those of BoRA's form
CONTENTS = ("gaussian", "decaying", "repeated", "rank-deficient", "zero", "tiny", "huge", "unbalanced")


def factor(rng: np.random.Generator, rows: int, columns: int, content: str) -> np.ndarray:
    """A (rows, columns) factor; the inner dimension is the smaller one in LoRA's B and Aᵀ."""
    X = rng.standard_normal((rows, columns))
    if content == "decaying":
        X *= 10.0 ** -np.arange(columns)
    elif content == "repeated":
        X[:] = np.round(X)
    elif content == "rank-deficient" and columns > 1:
        X[:, -1] = X[:, 0]
    elif content == "zero":
        X[:] = 0
    elif content == "tiny":
        X *= 1e-20
    elif content == "huge":
        X *= 1e20
    elif content == "unbalanced":
        X[:, 0] *= 1e8
    return X


@st.composite
def updates(draw: st.DrawFn, structure: str):
    """An update and ΔW by definition: block by block, in plain float64 products."""
    b = 1 if structure == "lora" else draw(st.integers(1, 5), label="b")
    p, q = draw(st.integers(1, 7), label="m/b"), draw(st.integers(1, 7), label="n/b")
    m, n = b * p, b * q
    top = max(p, q) if structure.startswith("melora") else max(m, n)
    r = draw(st.integers(1, min(6, top)), label="r")
    content = draw(st.sampled_from(CONTENTS), label="content")
    scaling = draw(st.sampled_from([1.0, 2.0, 0.125, -3.0]), label="scaling")
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    if structure.startswith("melora"):
        ranks = [r if structure == "melora" else 1 + (r + i) % top for i in range(b)]
        Bs = [factor(rng, p, k, content) for k in ranks]
        As = [factor(rng, q, k, content).T for k in ranks]
        dense = np.zeros((m, n))
        for i, (B, A) in enumerate(zip(Bs, As, strict=True)):
            dense[i * p : (i + 1) * p, i * q : (i + 1) * q] = scaling * (B @ A)
        return melora(Bs, As, scaling=scaling), dense
    B, A = factor(rng, m, r, content), factor(rng, n, r, content).T
    if structure == "lora":
        return lora(B, A, scaling=scaling), scaling * (B @ A)
    activation = draw(st.sampled_from(["exp-norm", "no-exp", "no-norm", "identity"]), label="activation")
    sigma = rng.standard_normal((b, b, r))
    mean = np.abs(sigma).mean()
    diagonals = {
        "exp-norm": np.exp(sigma / mean),
        "no-exp": sigma / mean,
        "no-norm": np.exp(sigma),
        "identity": sigma,
    }[activation]
    dense = np.zeros((m, n))
    for i in range(b):
        for j in range(b):
            block = B[i * p : (i + 1) * p] @ np.diag(diagonals[i, j]) @ A[:, j * q : (j + 1) * q]
            dense[i * p : (i + 1) * p, j * q : (j + 1) * q] = scaling * block
    return bora(B, A, sigma, scaling=scaling, activation=activation), dense


def exact_rank(matrix: np.ndarray) -> int:
    """Rank of a matrix of whole numbers by elimination in fractions: no rounding, no tolerance."""
    rows = [[Fraction(int(x)) for x in row] for row in matrix]
    rank = 0
    for column in range(matrix.shape[1]):
        pivot = next((i for i in range(rank, len(rows)) if rows[i][column]), None)
        if pivot is None:
            continue
        rows[rank], rows[pivot] = rows[pivot], rows[rank]
        for i in range(rank + 1, len(rows)):
            factor = rows[i][column] / rows[rank][column]
            if factor:
                rows[i] = [x - factor * y for x, y in zip(rows[i], rows[rank], strict=True)]
        rank += 1
    return rank
