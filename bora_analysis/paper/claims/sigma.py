"""Claims on Σ at initialisation (§3.2, §4.3)."""

from __future__ import annotations

import numpy as np

from .common import CLOSE, NEAR_ZERO, Finding, initial_sigma, spread, verdict


def normalisation() -> Finding:
    with_norm, without = initial_sigma("exp-norm"), initial_sigma("no-norm")
    near = {name: float(np.mean(np.abs(S - 1) <= CLOSE)) for name, S in (("with", with_norm), ("without", without))}
    return Finding(
        verdict(near["without"] > 0.5 and near["with"] < 0.5),
        f"r = 8, b = 16, Kaiming-uniform σ: without it Σ is {spread(without)}, {near['without']:.0%} within {CLOSE} "
        f"of 1; with it {spread(with_norm)}, {near['with']:.0%}",
    )


def exponential() -> Finding:
    found = {activation: np.abs(initial_sigma(activation)) for activation in ("exp-norm", "no-exp")}
    lost = {activation: float(np.mean(S < NEAR_ZERO)) for activation, S in found.items()}
    negative = bool((initial_sigma("exp-norm") <= 0).any())
    return Finding(
        verdict(lost["exp-norm"] == 0 and lost["no-exp"] > 0 and not negative),
        f"r = 8, b = 16 at initialisation: smallest |Σ| {found['exp-norm'].min():.3f} with Exp and "
        f"{found['no-exp'].min():.1g} without; below {NEAR_ZERO}: {lost['exp-norm']:.0%} and {lost['no-exp']:.1%}",
    )
