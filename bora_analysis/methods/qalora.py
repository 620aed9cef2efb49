"""QALoRA (arXiv 2309.14717): LoRA whose A sees means of groups of g inputs.

PEFT, ``use_qalora`` and ``qalora_group_size`` in the configuration: ``<module>.lora_A.weight`` (r, n/g),
``.lora_B.weight`` (m, r). The means are multiplied by n/g (``lora/variants.py``), so ΔW = s n/g² B (A ⊗ [1 … 1]).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from ..catalogue.formulas import GROUP
from ..files.adapter_file import Found, Loader, Source
from ..files.parts import collect, need, others
from ..files.tensors import Array
from ..updates.blocks import lora
from ..updates.contract import Update
from .pairs import Pair, check_pair


def read(source: Source) -> Found | None:
    """QALoRA as PEFT saves it."""
    if not source.setting("use_qalora", bool):
        return None
    found, rest = collect(source, "lora_[AB]")
    loaders = {module: _loader(source, module, parts) for module, parts in found.items()}
    return Found("qalora", loaders, others(source, rest), [])


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    B, A = need(source, parts, "lora_B", "lora_A")
    source.expect(len(source.tensors.shape(A)) == 2, A, "(r, n/g)")
    r, _ = check_pair(source, module, Pair(A, B, False))
    group = source.setting("qalora_group_size", int, GROUP)
    return source.loader({"B": B, "A": A}, partial(build, group=group, scaling=source.scaling(module, r)))


def build(B: Array, A: Array, *, group: int, scaling: float, dtype: str) -> Update:
    right = np.repeat(A.astype(np.float64) * (A.shape[1] / group), group, axis=1)
    update = lora(B, right, scaling=scaling, method="qalora", dtype=dtype, any_rank=True)
    trained = A.size + B.size
    return replace(update, facts=replace(update.facts, parameters=trained, macs_per_token=trained))
