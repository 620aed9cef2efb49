"""How much of a random update of given decay each method could have represented: the lab's last part.

A pure function of small hashable settings, cached per process, so that all visitors share its answers.
"""

from __future__ import annotations

from functools import lru_cache

import pandas as pd

from app.lab_model import METHODS
from bora_analysis.adapters.synthetic import synthetic_adapter
from bora_analysis.analysis.capture import capture
from bora_analysis.analysis.members import MULTIPLES
from bora_analysis.catalogue import METHODS as CATALOGUE

#: The largest m and n: the searches for the nearest BoRA then take a second or two on one processor.
LARGEST = 384


def fitting(m: int, n: int, blocks: int) -> tuple[int, int]:
    """The sizes that are tried: those of the lab, or the largest below them that are small enough and have the blocks.

    >>> fitting(1024, 384, 8), fitting(1000, 48, 16)
    ((384, 384), (384, 48))
    """
    m, n = (size if size <= LARGEST else LARGEST // blocks * blocks for size in (m, n))
    return m, n


@lru_cache(maxsize=64)
def captured(m: int, n: int, r: int, blocks: int, activation: str, decay: float, seed: int) -> pd.DataFrame:
    """The table of ``capture`` for a random m×n target with σ_k = k^−decay.

    The budgets are ½, 1, 2 and 4 times (m + n) r, that of LoRA; MELoRA and BoRA have the given blocks. Methods that
    have nothing at a budget are left out; an empty table where none has.
    """
    target = synthetic_adapter("lora", {"target": (m, n)}, r=min(m, n), kind="decay", decay=decay, seed=seed)
    members = [(method, 0, blocks if CATALOGUE[method].blocks else 0) for method in METHODS]
    found = []
    for factor in MULTIPLES:
        for member in members:
            try:
                found.append(
                    capture(
                        target,
                        [member],
                        budget=int(factor * (m + n) * r),
                        bora_activation=activation,
                        starts=1,
                        on_module=lambda: None,
                    )
                )
            except ValueError:  # no r, or blocks that do not divide, at this budget
                continue
    if not found:
        return capture(target, [("lora", 1)], on_module=lambda: None).iloc[:0]
    return pd.concat(found).drop_duplicates(["method", "r", "blocks"], ignore_index=True)
