"""Lily (arXiv 2407.09946): y += s (Σ_k p_k B_k) A x, p the mean of softmax(R A x) over the tokens.

PEFT: ``<module>.lily_A.weight`` (r, n), ``.lily_B.weight`` (K r, m), ``.lily_router.weight`` (K, r). Layers of one size
that one of ``target_modules`` names share B, and ``stride_A`` of them in turn share A (``lily/model.py``); the file
repeats them. Where every layer is named, as in our files, none share.
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
from .file_form import Arrays, Form, stored
from .random_factors import Parts, Recipe, Spec, kaiming, pair, pair_null
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
        kind = _target(source, module), sizes["m"], sizes["n"]
        build = partial(_build, own_A=before[kind] % stride == 0, own_B=before[kind] == 0)
        before[kind] += 1
        loaders |= loaders_of(source, module, named, count, "lily", scaling, count * r, build)
    return Found("lily", loaders, others(source, rest), [note(source, "Lily")], scaled=False)


def _target(source: Source, module: str) -> str:
    """Which of the targets names a layer; its own name where the configuration does not tell."""
    targets = source.setting("target_modules", (list, str), [])
    fitting = [target for target in targets if isinstance(target, str) and module.endswith(target)]
    return targets if isinstance(targets, str) else max(fitting, key=len, default=module.rpartition(".")[2])


def _build(
    A: list[Array], B: list[Array], route: Array, *, choice: Any, own_A: bool, own_B: bool, **options: Any
) -> Update:
    """The router sees A x, so R A sees x. What layers share is counted in the first of them."""
    experts = B[0].reshape(len(route), -1, B[0].shape[1]).transpose(0, 2, 1)
    update: Any = mix(A, list(experts), route.astype(np.float64) @ A[0], choice=choice, **options)
    shared = 0 if own_B else experts[0].size if isinstance(choice, int) else experts.size
    shared += 0 if own_A or (isinstance(choice, int) and choice) else A[0].size
    return update.with_facts(parameters=update.facts.parameters - shared)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    """One A, and K experts, whose mean is shorter by √K."""
    pairs = [pair(spec, rng, m, n) for _ in range(spec.blocks)]
    B = np.concatenate([B.T for B, _ in pairs]) * np.float32(np.sqrt(spec.blocks))
    return {"A": pairs[0][1], "B": B, "route": kaiming(rng, (spec.blocks, spec.r))}


def from_parts(a: Arrays, _: float, __: str) -> Update:
    told = {"choice": "mean", "method": "lily", "scaling": 1.0, "router": a["route"].size, "dtype": stored(a)}
    return _build([a["A"]], [a["B"]], a["route"], own_A=True, own_B=True, **told)


FORMS = {
    "lily": Form(
        {"A": "lily_A.weight", "B": "lily_B.weight", "route": "lily_router.weight"},
        from_parts,
        lambda a: len(a["A"]),
        lambda a: {"num_B": len(a["route"]), "stride_A": 1, "scaling": 1.0},
        alpha=None,
    )
}
RECIPES = {"lily": Recipe(random)}
NULLS = {"lily": pair_null()}  # as for HydraLoRA
