"""Claims on Σ at initialisation (§3.2, §4.3)."""

from __future__ import annotations

import numpy as np

from ...adapters.synthetic import Synthetic
from ...linalg import Array
from ...updates.blocks import bora
from .common import QUERY, Finding, claim, verdict

#: An entry of Σ within this of 1 is "close to 1" (§4.3), one within this of 0 "near zero" (§3.2).
CLOSE, NEAR_ZERO = 0.1, 0.05


@claim("C15", "§4.3", "without normalisation most entries of Σ remain close to 1")
def normalisation() -> Finding:
    with_norm, without = initial_sigma("exp-norm"), initial_sigma("no-norm")
    near = {name: float(np.mean(np.abs(S - 1) <= CLOSE)) for name, S in (("with", with_norm), ("without", without))}
    return Finding(
        verdict(near["without"] > 0.5 and near["with"] < 0.5),
        f"r = 8, b = 16, Kaiming-uniform σ: without it Σ is {spread(without)}, {near['without']:.0%} within {CLOSE} "
        f"of 1; with it {spread(with_norm)}, {near['with']:.0%}",
    )


@claim("C16", "§3.2", "Exp keeps Σ positive and away from zero")
def exponential() -> Finding:
    found = {activation: np.abs(initial_sigma(activation)) for activation in ("exp-norm", "no-exp")}
    lost = {activation: float(np.mean(S < NEAR_ZERO)) for activation, S in found.items()}
    negative = bool((initial_sigma("exp-norm") <= 0).any())
    return Finding(
        verdict(lost["exp-norm"] == 0 and lost["no-exp"] > 0 and not negative),
        f"r = 8, b = 16 at initialisation: smallest |Σ| {found['exp-norm'].min():.3f} with Exp and "
        f"{found['no-exp'].min():.1g} without; below {NEAR_ZERO}: {lost['exp-norm']:.0%} and {lost['no-exp']:.1%}",
    )


def initial_sigma(activation: str) -> Array:
    """Σ of a layer as initialised, (b, b, r)."""
    m, n, r, b = QUERY
    raw = Synthetic("bora", {"q": (m, n)}, r, b, kind="init")["q"]
    return bora(raw["B"], raw["A"], raw["sigma"], activation=activation).sigma


def spread(values: Array) -> str:
    return f"{values.min():.3f}–{values.max():.3f} (std {values.std():.3f})"
