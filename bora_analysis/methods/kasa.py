"""KaSA (arXiv 2412.06071): ΔW = s B diag(d) A on a base model without its smallest singular values.

PEFT, ``kasa_config`` in the configuration: LoRA's factors and ``<module>.lora_diag`` (r,) (``lora/variants.py``). At
the start PEFT takes the r smallest singular values out of W0; ΔW is what is added to the rest.
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import collect, fitted, read_parts
from ..updates.blocks import diagonal
from ..updates.contract import Update
from .file_form import Arrays, Form, stored
from .random_factors import Parts, Recipe, Spec, diagonal_null, pair

_NOTE = (
    "KaSA took the r smallest singular values out of each weight of the base model before training; ΔW is the change "
    "of what was left"
)


def read(source: Source) -> Found | None:
    """KaSA as PEFT saves it."""
    if not (source.config or {}).get("kasa_config") and not collect(source, "lora_diag")[0]:
        return None
    found = read_parts(source, "lora_[AB]|lora_diag", "kasa", _loader, scaled=True)
    return found and found._replace(notes=[_NOTE])


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    keys, sizes = fitted(source, parts, A="lora_A (r, n)", B="lora_B (m, r)", d="lora_diag (r,)")
    source.check_rank(module, keys["A"], sizes["r"])
    return source.loader(keys, partial(diagonal, method="kasa", scaling=source.scaling(module, sizes["r"])))


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """PEFT starts with B = 0 and a normal diagonal."""
    B, A = pair(spec, rng, m, n)
    d = rng.standard_normal(spec.r, dtype=np.float32) if spec.kind == "init" else np.ones(spec.r, np.float32)
    return {"B": B, "A": A, "d": d}


def from_parts(a: Arrays, scaling: float, _: str) -> Update:
    return diagonal(a["B"], a["d"], a["A"], method="kasa", scaling=scaling, dtype=stored(a))


FORMS = {
    "kasa": Form(
        {"A": "lora_A.weight", "B": "lora_B.weight", "d": "lora_diag"},
        from_parts,
        lambda a: len(a["A"]),
        lambda _: {"kasa_config": {}},
    )
}
RECIPES = {"kasa": Recipe(random)}
NULLS = {"kasa": diagonal_null()}
