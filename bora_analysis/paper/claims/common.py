"""Shared by the claims: verdicts, random layers, the paper's shapes and averages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ...adapters.synthetic import Synthetic
from ...catalogue.architectures import ARCHITECTURES, architecture, targets
from ...catalogue.cost import cost
from ...catalogue.sizes import common_divisors
from ...linalg import Array
from ...updates.blocks import bora
from ..tables import table

Verdict = Literal["holds", "holds under a condition", "erratum"]
HOLDS: Verdict = "holds"
CONDITION: Verdict = "holds under a condition"
ERRATUM: Verdict = "erratum"

#: Two float64 computations of one matrix count as equal below this difference, relative to the largest entry.
SAME = 1e-12
#: An entry of Σ within this of 1 is "close to 1" (§4.3), one within this of 0 "near zero" (§3.2).
CLOSE, NEAR_ZERO = 0.1, 0.05
#: Accuracies are printed to 0.01, so a difference of two averages is known to this (in percentage points).
PRINTED = 0.01

LORA, LORA32, BORA = ("lora", 8, 1), ("lora", 32, 1), ("bora", 8, 16)
MODELS = {
    "roberta-base": "RoBERTa-Base",
    "roberta-large": "RoBERTa-Large",
    "gemma-7b": "Gemma-7B",
    "llama-3-8b": "LLaMA-3-8B",
    "qwen2.5-14b": "Qwen2.5-14B",
}
BENCHMARKS = {1: "GLUE", 2: "maths", 3: "commonsense"}
#: A typical layer: q of LLaMA-3-8B with r = 8, b = 16.
QUERY = (4096, 4096, 8, 16)


class Finding(NamedTuple):
    """The verdict and its evidence."""

    verdict: Verdict
    evidence: str


@dataclass(frozen=True)
class Claim:
    """A claim of the paper.

    Attributes
    ----------
    id : ``"C1"`` …, fixed.
    where : equation, section or table of the paper.
    text : the claim in one line.
    judge : computes the evidence and derives the verdict from it.
    """

    id: str
    where: str
    text: str
    judge: Callable[[], Finding]


def verdict(everywhere: bool, partly: bool = False) -> Verdict:
    if everywhere:
        return HOLDS
    return CONDITION if partly else ERRATUM


def draws(
    count: int, *, seed: int, whole: int | None = None, inside: bool = False
) -> Iterator[tuple[Array, Array, Array]]:
    """Random (B, A, σ) of small layers, b = 1 to 4: normal numbers, or whole ones from −whole to whole.

    Whole numbers make ΔW exact in float64, and nonzero singular values stay far above rounding.
    ``inside``: r ≤ max(m, n)/b.
    """
    rng = np.random.default_rng(seed)
    for _ in range(count):
        b, p, q, r = rng.integers(1, (5, 4, 4, 4))
        r = min(r, max(p, q) * (1 if inside else b))
        shapes = (b * p, r), (r, b * q), (b, b, r)
        if whole is None:
            B, A, sigma = (rng.standard_normal(shape) for shape in shapes)
        else:
            B, A, sigma = (rng.integers(-whole, whole + 1, shape).astype(float) for shape in shapes)
        yield B, A, sigma


def difference(one: Array, other: Array) -> float:
    return float(np.abs(one - other).max() / max(np.abs(other).max(), np.finfo(float).tiny))


def rank_of(matrix: Array) -> int:
    return int(np.linalg.matrix_rank(matrix))


def block_by_block(B: Array, A: Array, diagonals: Array) -> Array:
    """ΔW by eq. 4, one block at a time, without code from :mod:`bora_analysis.updates`."""
    rows, columns = np.split(B, len(diagonals)), np.split(A, len(diagonals), axis=1)
    return np.block(
        [[rows[i] @ np.diag(diagonals[i, j]) @ columns[j] for j in range(len(columns))] for i in range(len(rows))]
    )


class Pass(NamedTuple):
    out: Array
    multiplications: int
    additions: int


def forward_pass(B: Array, A: Array, diagonals: Array, x: Array) -> Pass:
    """Eq. 8 segment by segment, with counts of multiplications and additions."""
    b, _, r = diagonals.shape
    multiplications = additions = 0
    inner = []
    for A_k, x_k in zip(np.split(A, b, axis=1), np.split(x, b), strict=True):
        inner.append(A_k @ x_k)
        multiplications, additions = multiplications + A_k.size, additions + A_k.size - r
    out = []
    for B_j, row in zip(np.split(B, b), diagonals, strict=True):
        out.append(B_j @ sum(diagonal * u for diagonal, u in zip(row, inner, strict=True)))
        multiplications += b * r + B_j.size
        additions += (b - 1) * r + B_j.size - len(B_j)
    return Pass(np.concatenate(out), multiplications, additions)


def initial_factors(m: int, n: int, r: int, b: int) -> dict[str, Array]:
    return Synthetic("bora", {"q": (m, n)}, r, b, kind="init")["q"]


def initial_sigma(activation: str) -> Array:
    """Σ of a layer as initialised, (b, b, r)."""
    m, n, r, b = QUERY
    raw = initial_factors(m, n, r, b)
    return bora(raw["B"], raw["A"], raw["sigma"], activation=activation).sigma


def paper_shapes() -> list[tuple[int, int]]:
    """Every (m, n) that the paper's experiments adapt: QV on RoBERTa, all seven of LLaMA-3-8B (table 8), else QKV."""
    shapes = []
    for name in MODELS:
        target = {"roberta-base": "QV", "roberta-large": "QV", "llama-3-8b": "QKVOGUD"}.get(name, "QKV")
        known = ARCHITECTURES[name]
        shapes += [known.projections[projection][1:] for projection in targets(target, architecture(name))]
    return list(dict.fromkeys(shapes))


def price_per_rank(m: int, n: int) -> dict[int, float]:
    """b → parameters per unit of rank, for every b that divides m and n."""
    rank = max(common_divisors([m, n]))
    return {b: cost("bora", m, n, rank // b, blocks=b).parameters / rank for b in common_divisors([m, n])}


def averages(numbers: Sequence[int]) -> dict[tuple[int, str], dict[tuple[str, int, int], float]]:
    """(table, model) → (method, r, blocks) → Avg."""
    out: dict[tuple[int, str], dict[tuple[str, int, int], float]] = {}
    for k in numbers:
        frame = table(k)
        for row in frame[frame["task"] == "Avg"].to_dict("records"):
            out.setdefault((k, row["model"]), {})[row["method"], row["r"], row["blocks"]] = row["value"]
    return out


def gains_over_lora(setting: tuple[str, int, int]) -> dict[tuple[int, str], float]:
    """(table, model) → points that a setting gains over LoRA r = 8, tables 1–3."""
    return {key: runs[setting] - runs[LORA] for key, runs in averages([1, 2, 3]).items()}


def by_model(values: dict[tuple[int, str], float], form: str = ".2f") -> str:
    return ", ".join(f"{MODELS[model]} {BENCHMARKS[k]} {value:{form}}" for (k, model), value in values.items())


def span(values: Sequence[float], form: str = ".2f") -> str:
    if not values:
        return "nothing"
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


def spread(values: Array) -> str:
    return f"{values.min():.3f}–{values.max():.3f} (std {values.std():.3f})"
