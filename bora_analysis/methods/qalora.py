"""QALoRA (arXiv 2309.14717): LoRA whose A sees means of groups of g inputs.

PEFT, ``use_qalora`` and ``qalora_group_size`` in the configuration: ``<module>.lora_A.weight`` (r, n/g),
``.lora_B.weight`` (m, r). The means are multiplied by n/g (``lora/variants.py``), so ΔW = s n/g² B (A ⊗ [1 … 1]).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..catalogue.formulas import GROUP
from ..files.adapter_file import Found, Loader, Source
from ..files.parts import fitted, read_parts
from ..files.tensors import Array
from ..updates.blocks import lora
from ..updates.contract import Update
from .file_form import Form, stored
from .random_factors import Parts, Recipe, Spec, pair


def read(source: Source) -> Found | None:
    """QALoRA as PEFT saves it."""
    told = source.setting("use_qalora", bool)
    return read_parts(source, "lora_[AB]", "qalora", _loader, scaled=True) if told else None


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    keys, sizes = fitted(source, parts, A="lora_A (r, n/g)", B="lora_B (m, r)")
    source.check_rank(module, keys["A"], sizes["r"])
    group = source.setting("qalora_group_size", int, GROUP)
    return source.loader(keys, partial(build, group=group, scaling=source.scaling(module, sizes["r"])))


def build(B: Array, A: Array, *, group: int, scaling: float, dtype: str) -> Update:
    right = np.repeat(A.astype(np.float64) * (A.shape[1] / group), group, axis=1)
    update = lora(B, right, scaling=scaling, method="qalora", dtype=dtype, any_rank=True)
    trained = A.size + B.size
    return update.with_facts(parameters=trained, macs_per_token=trained)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """A pair for n/g inputs; PEFT's g, which makes A's singular values larger by n/g · g^−½."""
    B, A = pair(spec, rng, m, n // GROUP)
    return {"A": A if spec.kind == "init" else A * np.float32(GROUP**1.5 / n), "B": B}


FORMS = {
    "qalora": Form(
        {side: f"lora_{side}.weight" for side in "AB"},
        lambda a, scaling, _: build(a["B"], a["A"], group=GROUP, scaling=scaling, dtype=stored(a)),
        lambda a: len(a["A"]),
        lambda _: {"use_qalora": True, "qalora_group_size": GROUP},
    )
}
RECIPES = {"qalora": Recipe(random, lambda spec, m, n: 0 if n % GROUP else min(m, n))}
