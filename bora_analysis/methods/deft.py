"""DEFT (NeurIPS 2025): ΔW = Q (s R − Pᵀ W0), which takes a subspace out of W0 and puts another one in; PaRa: without R.

PEFT: ``<module>.deft_P`` (m, r) and ``.deft_R`` (r, n). ``decomposition_method`` says what is made of the first: Q and
P are itself and its positive part (``relu``), or both its orthogonal factor (``qr``). s = α/r, or 1
(``deft/layer.py``).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.base_model import BaseMatrix
from ..files.parts import fitted, read_parts
from ..files.tensors import Array
from ..updates.blocks import lora
from ..updates.contract import Update
from ..updates.sums import combine
from .on_base_model import base_matrix, product
from .random_base import form_on_base, on_base
from .random_factors import Parts, Spec, orthonormal, slots


def read(source: Source) -> Found | None:
    """DEFT and PaRa as PEFT saves them."""
    return read_parts(source, "deft_[PR]", "deft", _loader)


def _loader(source: Source, module: str, parts: dict[str, str]) -> Loader:
    base = base_matrix(source, "DEFT", module, next(iter(parts.values())))
    shapes = {"P": "deft_P (m, r)"} | ({} if source.setting("para", bool, False) else {"R": "deft_R (r, n)"})
    keys, sizes = fitted(source, parts, dict(zip("mn", base.shape, strict=True)), base.key, **shapes)
    alpha = source.setting("alpha", (int, float)) if source.alpha is None else source.alpha
    scaling = alpha / sizes["r"] if alpha else 1.0
    qr = source.setting("decomposition_method", str, "relu") == "qr"
    return source.loader(keys, partial(_build, base=base, scaling=scaling, qr=qr))


def _build(P: Array, R: Array | None = None, *, base: BaseMatrix, scaling: float, qr: bool, dtype: str) -> Update:
    left = P.astype(np.float64)
    left = np.linalg.qr(left).Q if qr else left
    taken = product(base, left if qr else np.maximum(left, 0), transposed=True).T
    # Apart, because they begin equal: rounding is relative to each.
    parts = [lora(left, own, dtype=dtype, any_rank=True) for own in ([taken] if R is None else [taken, scaling * R])]
    update = combine(parts, [-1.0, 1.0][: len(parts)], method="deft")
    trained, r = P.size + (0 if R is None else R.size), P.shape[1]
    return update.with_facts(
        r=r, scaling=scaling, parameters=trained, macs_per_token=trained + P.size, rank_bound=min(*update.shape, r)
    )


def random(spec: Spec, rng: np.random.Generator, W0: Array) -> Parts:
    """Q orthonormal, and s R = Qᵀ W0 as PEFT starts, where ΔW = 0, moved: ΔW is then Q times what R has moved."""
    m, n = W0.shape
    Q = orthonormal(rng.standard_normal((m, spec.r), dtype=np.float32))
    moved = np.zeros((spec.r, n))
    if spec.kind != "init":
        rows = rng.standard_normal((spec.r, n), dtype=np.float32)
        rows = orthonormal(rows) if spec.kind == "decay" else rows / np.sqrt(n)
        moved = spec.scale * slots(spec, spec.r)[:, None] * rows
    return {"P": Q, "R": Q.T @ W0 + moved}


FORMS = {
    "deft": form_on_base(
        read,
        {"P": "deft_P", "R": "deft_R"},
        lambda a: a["P"].shape[1],
        lambda _: {"decomposition_method": "qr", "para": False},
    )
}
RECIPES = {"deft": on_base(random, lambda spec, m, n: min(m, n))}
