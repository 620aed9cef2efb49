"""Full fine-tuning: ΔW is the difference of two whole models.

**What rounding makes.** A fine-tuned weight stored in bfloat16 or float16 is off by up to half the spacing of the
numbers around it. Where these errors are independent and uniform, their matrix has entries of standard deviation
rms = √(mean spacing² / 12) and a largest singular value near (√m + √n) · rms (the edge of Marchenko and Pastur's law):
the noise floor. Singular values below it say nothing about the training. One rounding is counted, that of the
fine-tuned weights, in the coarser of the two types: training began from the base model as it is stored.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

import numpy as np

from ..catalogue.dtypes import EPSILON
from ..files.base_model import BaseMatrix, BaseWeights
from ..files.errors import AdapterError
from ..files.keys import module_path, natural
from ..files.tensors import Array
from ..patterns import late
from ..updates.checks import is_finite
from ..updates.contract import Facts
from ..updates.dense import Dense
from .adapter import Adapter

_EMBEDDING = late(
    r"(^|[._])(wte|wpe|shared|lm_head|embed_out|tok_embeddings|relative_attention_bias|"
    r"embed(ding|dings)?_?(tokens|positions|in)?|(word|position|token_type)_embeddings)$"
)
# Least exponent of a normal number, and bits of the fraction.
_FORMATS = {"bfloat16": (-126, 7), "float16": (-14, 10)}


def difference(
    tuned: BaseWeights,
    base: BaseWeights,
    name: str,
    step: int | None = None,
    *,
    embeddings: bool = False,
) -> Adapter:
    """The differences of all matrices that both models have, as an adapter: shapes now, weights when asked for.

    Parameters
    ----------
    tuned, base : the two models. Their module paths may differ by a first name, as for an adapter.
    embeddings : take embeddings and output heads too.

    Raises
    ------
    AdapterError
        Shapes that differ, a quantised model, no common matrix.
    """
    loaders = {}
    passed_over = []
    skipped = 0
    for key in tuned.keys():  # noqa: SIM118  no mapping
        module = re.sub(r"\.(in_proj_)?weight$", "", module_path(key))
        shape = tuned.shape(key)
        if len(shape) < 2 or module == module_path(key):
            passed_over.append(key)
        elif not embeddings and _EMBEDDING.search(module):
            passed_over.append(key)
            skipped += 1
        else:
            try:
                counterpart = base.find(module)
            except AdapterError:
                passed_over.append(key)  # a new head
                continue
            before, after = base.matrix_of(counterpart), tuned.matrix_of(key)
            if after.stored != before.stored:
                raise AdapterError(
                    f"{tuned.path}: {key} has shape {after.stored}, but {before.key} of the base model "
                    f"{before.stored}; is it the model that was fine-tuned?"
                )
            loaders[module] = partial(_update, after, before)
    if not loaders:
        raise AdapterError(f"{tuned.path}: has no matrix in common with the base model {base.path}")
    ordered = {module: loaders[module] for module in sorted(loaders, key=natural)}
    notes = [f"the update is the difference to {base.path}"]
    if skipped:
        notes.append(f"{skipped} embeddings and heads are passed over")
    return Adapter(name, "full", step, Path(tuned.path), ordered, tuple(passed_over), tuple(notes))


def noise_floor(weights: Array, dtype: str) -> float:
    """(√m + √n) · rms of the rounding of an (m, n) matrix stored in ``dtype``; NaN unless that is a half type.

    Examples
    --------
    >>> import numpy as np
    >>> round(noise_floor(np.ones((100, 100)), "bfloat16"), 5)  # 20 · 2⁻⁷ / √12
    0.04511
    """
    if dtype not in _FORMATS:
        return float("nan")
    least, bits = _FORMATS[dtype]
    # Exponents from float32's bits, which holds both types exactly: 7× as fast as frexp, and 0 has the least.
    stored = np.ascontiguousarray(weights, np.float32).view(np.uint32) >> 23 & 0xFF
    counts = np.bincount(stored.ravel(), minlength=256)
    spacing = np.exp2(np.maximum(np.arange(256) - 127, least) - bits)
    m, n = weights.shape
    return float((np.sqrt(m) + np.sqrt(n)) * np.sqrt(counts @ spacing**2 / counts.sum() / 12))


def _update(after: BaseMatrix, before: BaseMatrix) -> Dense:
    m, n = before.shape
    dtype = max((after.dtype, before.dtype), key=lambda name: EPSILON[name])
    facts = Facts("full", m, n, min(m, n), 1, 1.0, m * n, 0, min(m, n), dtype)
    floor = partial(_floor, after, dtype) if dtype in _FORMATS else None
    return Dense(facts, partial(_difference, after, before), floor)


def _difference(after: BaseMatrix, before: BaseMatrix) -> Array:
    change = after.read().astype(np.float64)
    change -= before.read()
    if not is_finite(change):
        raise AdapterError(f"{after.weights.path}: {after.key} or its counterpart in the base model holds NaN or Inf")
    return change


def _floor(after: BaseMatrix, dtype: str) -> float:
    return noise_floor(after.read(), dtype)
