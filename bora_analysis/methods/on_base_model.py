"""What methods share whose update depends on the base model's weights W0 ∈ R^{m×n}.

All of them as PEFT merges them (``peft/tuners``), in float64. HRA's, DEFT's and PSOFT's ΔW is a product of two factors
of r columns; most others have no core smaller than ΔW, which is computed when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..files.adapter_file import Source
from ..files.base_model import BaseMatrix
from ..files.errors import AdapterError, BaseNeededError
from ..files.tensors import Array
from ..updates.checks import is_finite
from ..updates.contract import Facts
from ..updates.dense import Dense


def base_matrix(source: Source, method: str, module: str, key: str, *, embedding: bool = False) -> BaseMatrix:
    """W0 of a module; refused without the base model."""
    if source.base is None:
        options = f": --base DIR_OR_HUB_ID (base=) (key {key})"
        raise BaseNeededError(f"{source.path}: {method} needs the base model", options)
    flag = bool((source.config or {}).get("fan_in_fan_out"))
    return source.base.matrix(module, fan_in_fan_out=flag, embedding=embedding)


def product(base: BaseMatrix, X: Array, *, transposed: bool = False) -> Array:
    """W0 X or W0ᵀ X, in slices: a float64 copy of all of W0 is not needed."""
    W = base.read().T if transposed else base.read()
    return np.concatenate([part.astype(np.float64) @ X for part in np.array_split(W, max(1, W.size >> 22))])


def checked(source: Source, key: str, facts: Facts, make: Callable[[], Array]) -> Dense:
    """The update that ``make`` computes; its errors name file and key."""

    def checked() -> Array:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            matrix = make()
        if not is_finite(matrix):
            raise AdapterError(
                f"{source.path}: {key}: ΔW holds NaN or Inf; the factors or the base model have numbers that are "
                "too large or not finite"
            )
        return matrix

    return Dense(facts, checked)
