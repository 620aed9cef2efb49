"""Lily (arXiv 2407.09946): y += s (Σ_k p_k B_k) A x, p the mean of softmax(R A x) over the tokens.

PEFT: ``<module>.lily_A.weight`` (r, n), ``.lily_B.weight`` (K r, m), ``.lily_router.weight`` (K, r). Layers of one name
and size share B, and ``stride_A`` of them in turn share A (``lily/model.py``); the file repeats them.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.keys import natural
from ..files.parts import collect, fitted, others
from ..linalg import Array
from ..updates.contract import Update
from .routed import loaders_of, mix, note


def read(source: Source) -> Found | None:
    """Lily as PEFT saves it."""
    found, rest = collect(source, "lily_(A|B|router)")
    if not found:
        return None
    scaling = float(source.setting("scaling", (int, float), 1.0))
    stride = source.setting("stride_A", int, 1)
    loaders: dict[str, Loader] = {}
    before: Counter[Any] = Counter()
    for module, parts in sorted(found.items(), key=lambda each: natural(each[0])):
        keys, sizes = fitted(source, parts, A="lily_A (r, n)", route="lily_router (K, r)", B="lily_B (Kr, m)")
        r, count = sizes["r"], sizes["K"]
        source.expect(sizes["Kr"] == count * r, keys["B"], f"({count * r}, m): {count} experts of r = {r}")
        source.check_rank(module, keys["A"], r)
        named = {"A": [keys["A"]], "B": [keys["B"]], "route": keys["route"]}
        kind = module.rpartition(".")[2], sizes["m"], sizes["n"]
        build = partial(_build, own_A=before[kind] % stride == 0, own_B=before[kind] == 0)
        before[kind] += 1
        loaders |= loaders_of(source, module, named, count, "lily", scaling, count * r, build)
    return Found("lily", loaders, others(source, rest), [note(source, "Lily")], scaled=False)


def _build(
    A: list[Array], B: list[Array], route: Array, *, choice: Any, own_A: bool, own_B: bool, **options: Any
) -> Update:
    """The router sees A x, so R A sees x. What layers share is counted in the first of them."""
    experts = B[0].reshape(len(route), -1, B[0].shape[1]).transpose(0, 2, 1)
    update: Any = mix(A, list(experts), route.astype(np.float64) @ A[0], choice=choice, **options)
    shared = 0 if own_B else experts[0].size if isinstance(choice, int) else experts.size
    shared += 0 if own_A or (isinstance(choice, int) and choice) else A[0].size
    return update.with_facts(parameters=update.facts.parameters - shared)
