"""The synthetic lab's computations: one layer under LoRA, MELoRA, BoRA and any other method, from sizes and a seed.

Pure functions of small hashable settings, cached per process, so that all visitors share them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import gcd

import numpy as np
import pandas as pd

from bora_analysis import catalogue, metrics
from bora_analysis.adapters.synthetic import Synthetic
from bora_analysis.analysis.spectrum import FactorRanks, factor_ranks, singular_values
from bora_analysis.analysis.tables import SPECTRA_COLUMNS
from bora_analysis.catalogue.cost import cost
from bora_analysis.catalogue.formulas import Cost
from bora_analysis.catalogue.sizes import common_divisors
from bora_analysis.linalg import Array
from bora_analysis.methods import form, recipe
from bora_analysis.threshold import Threshold
from bora_analysis.updates.contract import Blocked, Facts, Update

#: The largest m and n, and r. With the two limits below, the SVD of a core takes at most 70 ms on one processor and the
#: ranks of the S_k less: a change of any control is answered within 300 ms.
LARGEST = 1024
LARGEST_RANK = 64
LARGEST_CORE = 512
LARGEST_SLOTS = 2**25  # r b³: the work for the r SVDs of the S_k ∈ R^{b×b}

METHODS = ("lora", "melora", "bora")
#: What may stand beside them.
OTHERS = catalogue.names(lambda row: row.made and not (row.accompanied or row.staged) and row.name not in METHODS)
# Of these no large core is ever decomposed.
_COARSE = ("lokr", "krona", "c3a")
KINDS = {"gaussian": "Gaussian", "decay": "decay", "init": "initialisation", "counterexample": "counterexample"}
BUDGETS = {"r": "same r", "budget": "same budget"}

SEED_PATH = "lab"  # a module's numbers depend on its path too


@dataclass(frozen=True)
class Setting:
    """What the lab's controls say. ``kind`` is one of ``KINDS``; the others as in :class:`Synthetic`."""

    m: int
    n: int
    r: int
    blocks: int
    kind: str = "gaussian"
    decay: float = 1.0
    seed: int = 0
    activation: str = "exp-norm"
    same: str = "r"


@dataclass(frozen=True, eq=False)
class Outcome:
    """One method's update. What is found from it is found once.

    ``r`` and ``blocks`` are what was asked for; r is None for a method that has none, blocks 1 for one without.
    """

    method: str
    r: int | None
    blocks: int
    update: Update

    @property
    def facts(self) -> Facts:
        return self.update.facts

    @cached_property
    def values(self) -> Array:
        """The singular values, (rank bound,), descending."""
        return singular_values(self.update, solver="svd", device="cpu").values

    @cached_property
    def ranks(self) -> FactorRanks | None:
        """Those of B', Σ' and A'; None for a ΔW that is no product of block factors."""
        return factor_ranks(self.update) if isinstance(self.update, Blocked) else None

    @cached_property
    def measured(self) -> int:
        """Numerical rank of ΔW. The factors here are exact numbers, so its tolerance has the ε of float64."""
        return metrics.numerical_rank(self.values, metrics.rounding_tolerance(self.values))


def blocks_offered(m: int, n: int, r: int) -> tuple[int, ...]:
    """Every b that divides m and n and whose computation stays within the lab's limits, ascending."""
    return tuple(
        b for b in common_divisors([m, n]) if min(m, n, b * r) <= LARGEST_CORE and r * b**3 <= LARGEST_SLOTS
    )  # fmt: skip


def ranks_of(setting: Setting) -> dict[str, int]:
    """Method → r. At the same budget LoRA and MELoRA get the largest r that BoRA's parameters buy.

    Not more than adds rank: min(m, n) for LoRA, min(m, n)/b for a mini.
    """
    m, n, r, b = setting.m, setting.n, setting.r, setting.blocks
    if setting.same == "r":
        return dict.fromkeys(METHODS, r)
    bought = cost("bora", m, n, r, blocks=b).parameters // (m + n)
    return {"lora": min(bought, m, n), "melora": max(r, min(bought, min(m, n) // b)), "bora": r}


def compare(setting: Setting, others: Sequence[str] = ()) -> tuple[Outcome, ...]:
    """LoRA, MELoRA and BoRA of one setting, then the others that fit it; ValueError for sizes that do not fit."""
    found = [_outcome(setting, m, r, 1 if m == "lora" else setting.blocks) for m, r in ranks_of(setting).items()]
    if setting.kind != "counterexample":  # that is one of block factors
        fitting = {method: sizes for method in others if (sizes := sizes_of(setting, method)) is not None}
        found += [_outcome(setting, method, *sizes) for method, sizes in fitting.items()]
    return tuple(found)


def sizes_of(setting: Setting, method: str) -> tuple[int, int] | None:
    """r and blocks with which another method stands beside BoRA; None where it cannot, or not within the lab's limits.

    At the same budget r is the largest that BoRA's parameters buy. A method whose blocks split r has as many of the
    b blocks as divide r; one with experts its usual number of them. A method without r is what it is.
    """
    m, n, row, largest = setting.m, setting.n, catalogue.METHODS[method], recipe(method).most
    blocks = 1 if row.blocks is None else setting.blocks if row.blocks.divides else row.blocks.default
    if row.splits:
        blocks = gcd(blocks, setting.r)
    experts = blocks if row.experts else None

    def price(r: int) -> Cost:
        return cost(method, m, n, r, blocks=blocks if row.cut else 1, experts=experts)

    most = min(m, n)
    if largest is not None:
        most = min(most, largest(Synthetic("lora", {SEED_PATH: (m, n)}, 1), m, n))
    step = blocks if row.splits else 1
    possible = range(step, most + 1, step)
    if method not in _COARSE:
        possible = possible[: bisect_right(possible, LARGEST_CORE, key=lambda r: price(r).rank_bound)]
    if not possible:
        return None
    if setting.same == "budget" and row.ranked:
        bought = cost("bora", m, n, setting.r, blocks=setting.blocks).parameters
        return possible[max(0, bisect_right(possible, bought, key=lambda r: price(r).parameters) - 1)], blocks
    return min(setting.r, possible[-1]), blocks


@lru_cache(maxsize=32)
def sweep(setting: Setting) -> pd.DataFrame:
    """BoRA of the setting at every b offered: blocks, rank_bound, measured_rank, parameters, parameters_per_rank.

    ``setting.blocks`` has no influence: give 1, so that settings that differ in nothing else share the answer.
    """
    rows = []
    for b in blocks_offered(setting.m, setting.n, setting.r):
        one = Outcome("bora", setting.r, b, _update(setting, "bora", setting.r, b))
        facts = one.facts
        rows.append((b, facts.rank_bound, one.measured, facts.parameters, facts.parameters / facts.rank_bound))
    return pd.DataFrame(rows, columns=["blocks", "rank_bound", "measured_rank", "parameters", "parameters_per_rank"])


def spectra_frame(outcomes: tuple[Outcome, ...], names: dict[str, str]) -> pd.DataFrame:
    """The spectra in the columns of the product's table, so that its figures draw them."""
    parts = [
        pd.DataFrame({
            "adapter": names[one.method], "method": one.method, "step": None, "module": SEED_PATH, "layer": None,
            "projection": SEED_PATH, "index": np.arange(1, len(one.values) + 1), "singular_value": one.values,
        })
        for one in outcomes
    ]  # fmt: skip
    frame = pd.concat(parts, ignore_index=True)[list(SPECTRA_COLUMNS)]
    return frame.astype({"step": "Int64", "layer": "Int64"})


def ranks_frame(outcomes: tuple[Outcome, ...], threshold: Threshold | float) -> pd.DataFrame:
    """One row per method: sizes, parameters, the ranks of the three factors, bound, and ranks of ΔW."""
    rows = [
        {
            "method": one.method,
            "r": one.r,
            "blocks": one.blocks,
            "parameters": one.facts.parameters,
            "rank_B": one.ranks and one.ranks.B,
            "rank_sigma": one.ranks and one.ranks.sigma,
            "rank_A": one.ranks and one.ranks.A,
            "rank_bound": one.facts.rank_bound,
            "measured_rank": one.measured,
            "effective_rank": metrics.effective_rank(one.values, threshold),
            "entropy_rank": metrics.entropy_rank(one.values),
            "stable_rank": metrics.stable_rank(one.values),
        }
        for one in outcomes
    ]
    return pd.DataFrame(rows).astype(dict.fromkeys(("r", "rank_B", "rank_sigma", "rank_A"), "Int64"))


@lru_cache(maxsize=128)
def _outcome(setting: Setting, method: str, r: int, blocks: int) -> Outcome:
    known = r if catalogue.METHODS[method].ranked else None
    return Outcome(method, known, blocks, _update(setting, method, r, blocks))


def _update(setting: Setting, method: str, r: int, blocks: int) -> Update:
    kind = "gaussian" if setting.kind == "counterexample" else setting.kind
    sizes = {SEED_PATH: (setting.m, setting.n)}
    raw = Synthetic(method, sizes, r, blocks, kind=kind, seed=setting.seed, decay=setting.decay)
    # As float64, numbers that are exact and not rounded to a stored dtype: its ε then decides what counts as rank.
    parts = {name: part.astype(np.float64) if part.dtype.kind == "f" else part for name, part in raw[SEED_PATH].items()}
    if setting.kind == "counterexample":
        parts |= _orthogonal_pair(setting, method, r)
    return form(method).build(parts, raw.scaling, setting.activation)


def _orthogonal_pair(setting: Setting, method: str, r: int) -> dict[str, Array]:
    """B_i = [I 0] and A_j = [0 I]ᵀ: B', Σ' and A' of full rank, and B_i Σ_ij A_j = 0 for any diagonal Σ_ij."""
    b = setting.blocks
    p, q = setting.m // b, setting.n // b
    if p + q > r:
        raise ValueError(
            f"the counterexample needs r ≥ m/b + n/b; got r = {r} and {p} + {q}: choose a larger b or r, "
            "or the preset b = r = m = n = 2"
        )
    left, right = np.eye(p, r), np.eye(q, r, r - q).T
    if method == "melora":
        return {"B": np.stack([left] * b), "A": np.stack([right] * b)}
    return {"B": np.concatenate([left] * b), "A": np.concatenate([right] * b, axis=1)}
