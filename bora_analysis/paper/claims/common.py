"""Shared by the claims: verdicts, random layers, the paper's shapes and averages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np

from ...linalg import Array

Verdict = Literal["holds", "holds under a condition", "erratum", "fails", "cannot be told"]
HOLDS: Verdict = "holds"
CONDITION: Verdict = "holds under a condition"
ERRATUM: Verdict = "erratum"
#: Of a claim on trained adapters: in none of the bundled ones, or the bundled ones are not enough to judge it.
FAILS: Verdict = "fails"
UNTOLD: Verdict = "cannot be told"

Judge = TypeVar("Judge", bound="Callable[..., Finding]")

#: Two float64 computations of one matrix count as equal below this difference, relative to the largest entry.
SAME = 1e-12
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


CLAIMS: list[Claim] = []


def claim(id: str, where: str, text: str, *arguments: Any) -> Callable[[Judge], Judge]:
    """Add a claim that the decorated function judges, called with the further arguments."""

    def add(judge: Judge) -> Judge:
        CLAIMS.append(Claim(id, where, text, partial(judge, *arguments)))
        return judge

    return add


def verdict(everywhere: bool, partly: bool = False) -> Verdict:
    if everywhere:
        return HOLDS
    return CONDITION if partly else ERRATUM


def cut(cases: Sequence[bool]) -> Verdict:
    """Of a claim on trained adapters: it fails where no more than half of the cases are as it says."""
    if all(cases):
        return HOLDS
    return CONDITION if sum(cases) > len(cases) / 2 else FAILS


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


def span(values: Sequence[float], form: str = ".2f") -> str:
    if not values:
        return "nothing"
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"
