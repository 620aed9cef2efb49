"""AdaLoRA (arXiv 2303.10512): ΔW = α/(init_r + 1e-5) · B diag(E) A.

PEFT: ``<module>.lora_A`` (r, n), ``.lora_B`` (m, r), ``.lora_E`` (r, 1), without ``.weight``. r is what pruning left,
0 where it left nothing; the scaling stays that of ``init_r`` (``adalora/layer.py``, ``ranknum``).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import collect, need, others
from ..linalg import Array
from ..projections import Projection, Target, Wish
from ..updates.blocks import diagonal
from ..updates.contract import Facts, Update
from ..updates.dense import dense
from .file_form import Arrays, Form, stored
from .random_factors import Parts, Recipe, Spec, diagonal_null, pair


def read(source: Source) -> Found | None:
    """AdaLoRA as PEFT saves it, before pruning and after."""
    if not source.has(r"\.lora_E(\.|$)"):
        return None
    found, rest = collect(source, "lora_[ABE]")
    loaders = {module: _loader(source, module, parts) for module, parts in found.items()}
    return Found("adalora", loaders, others(source, rest), [])


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    B, E, A = need(source, parts, "lora_B", "lora_E", "lora_A")
    shapes = [source.tensors.shape(key) for key in (B, E, A)]
    r = shapes[2][0] if shapes[2] else 0
    source.expect(len(shapes[2]) == 2, A, "(r, n)")
    source.expect(len(shapes[0]) == 2 and shapes[0][1] == r, B, f"(m, {r}) from lora_A {shapes[2]}")
    source.expect(shapes[1] == (r, 1), E, f"({r}, 1) from lora_A {shapes[2]}")
    start = source.setting("init_r", int)
    alpha = source.alpha_of(module)
    # PEFT takes α ≤ 0 as r: a scaling of 1.
    scaling = 1.0 if alpha is None else (alpha if alpha > 0 else float(start or r)) / ((start or r) + 1e-5)
    if r == 0:
        return partial(_pruned, shapes[0][0], shapes[2][1], scaling, source.tensors.dtype(A))
    for key in (B, E, A):
        source.check_factor(key)
    return source.loader({"B": B, "E": E, "A": A}, partial(build, scaling=scaling))


def build(B: Array, E: Array, A: Array, *, scaling: float, dtype: str) -> Update:
    return diagonal(B, E[:, 0], A, scaling=scaling, method="adalora", dtype=dtype)


def _pruned(m: int, n: int, scaling: float, dtype: str) -> Update:
    """A module from which pruning took every direction: ΔW = 0 with a rank bound of 0."""
    facts = Facts("adalora", m, n, 0, 1, scaling, 0, 0, 0, dtype)
    return replace(dense(np.zeros((m, n), np.float32)), facts=facts)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """PEFT starts with normal factors (0.02) and E = 0."""
    if spec.kind == "init":
        B, A = (0.02 * rng.standard_normal(shape, dtype=np.float32) for shape in ((m, spec.r), (spec.r, n)))
        return {"B": B, "A": A, "E": np.zeros((spec.r, 1), np.float32)}
    B, A = pair(spec, rng, m, n)
    return {"B": B, "A": A, "E": np.ones((spec.r, 1), np.float32)}


def from_parts(a: Arrays, scaling: float, _: str) -> Update:
    r = len(a["E"])
    return build(a["B"], a["E"], a["A"], scaling=scaling * r / (r + 1e-5), dtype=stored(a))  # PEFT adds 1e-5 to r


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    B, A, captured = target.pair(wish.r)
    return {"B": B, "A": A, "E": np.full((wish.r, 1), 1 + 1e-5 / wish.r)}, captured


FORMS = {
    "adalora": Form(
        {"A": "lora_A", "B": "lora_B", "E": "lora_E"},
        from_parts,
        lambda a: len(a["E"]),
        lambda a: {"init_r": len(a["E"]), "target_r": len(a["E"]), "total_step": 1},
    )
}
RECIPES = {"adalora": Recipe(random)}
NULLS = {"adalora": diagonal_null()}  # B and A are normal at the start, and E is zero
NEAREST = {"adalora": Projection(nearest, scale="E", same="lora")}
