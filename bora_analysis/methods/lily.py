"""Lily (arXiv 2407.09946): y += s (Σ_k p_k B_k) A x, p the mean of softmax(R A x) over the tokens.

PEFT: ``<module>.lily_A.weight`` (r, n), ``.lily_B.weight`` (K r, m), ``.lily_router.weight`` (K, r). Layers may share A
(``stride_A``) and B; the file repeats them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import collect, need, others
from ..linalg import Array
from ..updates.contract import Update
from .routed import loaders_of, mix, note


def read(source: Source) -> Found | None:
    """Lily as PEFT saves it."""
    found, rest = collect(source, "lily_(A|B|router)")
    if not found:
        return None
    scaling = float(source.setting("scaling", (int, float), 1.0))
    loaders: dict[str, Loader] = {}
    for module, parts in found.items():
        A, B, route = keys = need(source, parts, "lily_A", "lily_B", "lily_router")
        for key in keys:
            source.check_factor(key)
            source.expect(len(source.tensors.shape(key)) == 2, key, "two dimensions")
        r, (count, inner) = source.tensors.shape(A)[0], source.tensors.shape(route)
        source.expect(inner == r, route, f"(K, {r}) from lily_A {source.tensors.shape(A)}")
        source.expect(source.tensors.shape(B)[0] == count * r, B, f"({count * r}, m): {count} experts of r = {r}")
        source.check_rank(module, A, r)
        named = {"A": [A], "B": [B], "route": route}
        loaders |= loaders_of(source, module, named, count, "lily", scaling, count * r, _build)
    notes = [note(source, "Lily"), "factors that layers share are counted in each of them"]
    return Found("lily", loaders, others(source, rest), notes, scaled=False)


def _build(A: list[Array], B: list[Array], route: Array, **options: Any) -> Update:
    """The router sees A x, so R A sees x."""
    experts = B[0].reshape(len(route), -1, B[0].shape[1]).transpose(0, 2, 1)
    return mix(A, list(experts), route.astype(np.float64) @ A[0], **options)
