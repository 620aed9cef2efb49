"""Updates of every structure, and dense oracles that share no code with the package."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from bora_analysis import bora, lora, melora
from bora_analysis.updates.blocks import diagonal
from bora_analysis.updates.circulant import c3a
from bora_analysis.updates.hadamard import loha
from bora_analysis.updates.kronecker import lokr
from bora_analysis.updates.sparse import fourierft, shira
from bora_analysis.updates.sums import combine

STRUCTURES = ("lora", "melora", "melora-unequal", "bora")  # those of BoRA's form
FAMILY = ("diagonal", "sum", "loha", "lokr", "krona", "c3a", "fourierft", "shira")
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


@st.composite
def family_updates(draw: st.DrawFn, structure: str):
    """An update of another structure, and ΔW entry by entry or by NumPy's own product."""
    m, n = draw(st.integers(1, 12), label="m"), draw(st.integers(1, 12), label="n")
    r = draw(st.integers(1, 4), label="r")
    content = draw(st.sampled_from(CONTENTS), label="content")
    scaling = draw(st.sampled_from([1.0, 2.0, 0.125, -3.0]), label="scaling")
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1), label="seed"))
    if structure == "diagonal":
        B, A, d = factor(rng, m, r, content), factor(rng, n, r, content).T, rng.standard_normal(r)
        return diagonal(B, d, A, scaling=scaling, method="adalora"), scaling * (B @ np.diag(d) @ A)
    if structure == "sum":
        pairs = [(factor(rng, m, k, content), factor(rng, n, k, content).T) for k in (r, 1, 2)]
        weights = rng.standard_normal(3)
        terms = [lora(B, A, scaling=scaling, any_rank=True) for B, A in pairs]
        return combine(terms, weights.tolist()), sum(
            w * scaling * (B @ A) for w, (B, A) in zip(weights, pairs, strict=True)
        )
    if structure == "loha":
        w1a, w2a = factor(rng, m, r, content), factor(rng, m, r, content)
        w1b, w2b = factor(rng, n, r, content).T, factor(rng, n, r, content).T
        return loha(w1a, w1b, w2a, w2b, scaling=scaling), scaling * (w1a @ w1b) * (w2a @ w2b)
    if structure in ("lokr", "krona"):
        p, q = draw(st.integers(1, 4), label="p"), draw(st.integers(1, 4), label="q")
        w1 = factor(rng, p, q, content)
        a, b = factor(rng, m, r, content), factor(rng, n, r, content).T
        whole = structure == "krona"
        return lokr(w1, a @ b if whole else (a, b), scaling=scaling), scaling * np.kron(w1, a @ b)
    if structure == "c3a":
        b = draw(st.integers(1, 6), label="b")
        kernel = factor(rng, m * n, b, content).reshape(m, n, b)
        dense = np.zeros((m * b, n * b))
        for t in range(m * b):
            for k in range(n * b):
                dense[t, k] = kernel[t // b, k // b, (k - t) % b] / (n * b)
        return c3a(kernel), dense
    places = rng.choice(m * n, draw(st.integers(1, m * n), label="entries"), replace=False)
    values = factor(rng, places.size, 1, content)[:, 0]
    S = np.zeros((m, n))
    S[places // n, places % n] = values
    if structure == "shira":
        return shira(values, places // n, places % n, (m, n)), S
    return fourierft(values, places // n, places % n, (m, n), scaling=scaling), scaling * np.fft.ifft2(S).real


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
