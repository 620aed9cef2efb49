"""Uni-LoRA (arXiv 2506.00799): every number of A and B is one of a single trained vector θ, scaled.

PEFT: once ``base_model.unilora_theta_d`` (d,), and with ``save_indices`` ``<module>.unilora_indices_A`` (r, n),
``.unilora_indices_B`` (m, r) and ``.unilora_scales_A``, ``_B`` of the same shapes. ΔW = BA without a scaling. Without
``save_indices`` the places follow from the order of the model's layers, which the file does not have.
"""

from __future__ import annotations

import re
from functools import cache, partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.errors import AdapterError
from ..files.parts import collect, fitted, need, others
from ..linalg import Array
from ..updates.blocks import lora
from ..updates.contract import FactorError, Update

_VECTOR = re.compile(r"(^|\.)unilora_theta_d(\.[^.]+)?$")


def read(source: Source) -> Found | None:
    """Uni-LoRA as PEFT saves it with its indices."""
    found, rest = collect(source, "unilora_(indices|scales)_[AB]")
    vectors = [key for key in rest if _VECTOR.search(key)]
    if not (found or vectors):
        return None
    if not (found and vectors):
        raise AdapterError(
            f"{source.path}: {vectors[0] if vectors else next(iter(found))} has no "
            f"{'unilora_indices' if vectors else 'unilora_theta_d'} beside it: where the numbers of Uni-LoRA's vector "
            "stand follows from the order of all layers, which the file does not have; save with save_indices=True"
        )
    source.check_factor(vectors[0])
    (size,) = source.tensors.shape(vectors[0])
    vector = cache(lambda: source.read_shared(vectors[0]).astype(np.float64))

    def loader(module: str, parts: dict[str, str]) -> Loader:
        keys, _ = fitted(source, parts, scales_A="unilora_scales_A (r, n)", scales_B="unilora_scales_B (m, r)")
        for side, key in zip("AB", need(source, parts, "unilora_indices_A", "unilora_indices_B"), strict=True):
            shape = source.tensors.shape(keys[f"scales_{side}"])
            source.expect(source.tensors.shape(key) == shape, key, f"{shape} from unilora_scales_{side}")
            keys[f"indices_{side}"] = key
        return source.loader(keys, partial(build, trained=size if module == next(iter(found)) else 0))

    def build(
        indices_A: Array, indices_B: Array, scales_A: Array, scales_B: Array, *, trained: int, dtype: str
    ) -> Update:
        for side, indices in (("A", indices_A), ("B", indices_B)):
            if indices.min() < 0 or indices.max() >= size:
                raise FactorError(f"indices_{side}", f"reach from {indices.min()} to {indices.max()}; θ has {size}")
        B, A = vector()[indices_B] * scales_B, vector()[indices_A] * scales_A
        update = lora(B, A, method="unilora", dtype=dtype, any_rank=True)
        return update.with_facts(parameters=trained)

    loaders = {module: loader(module, parts) for module, parts in found.items()}
    note = f"the vector of {size:,} trained numbers is shared by all modules and counted for the first"
    return Found("unilora", loaders, others(source, [key for key in rest if key not in vectors]), [note], scaled=False)
