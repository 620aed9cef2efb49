"""HydraLoRA (arXiv 2404.19245), y += s Σ_k softmax(route x)_k B_k A x.

Ours: ``<module>.hydralora_A`` (r, n), ``.hydralora_B`` (K, m, r), ``.hydralora_route`` (K, n). Its authors':
``.lora_A.weight`` (r, n), ``.lora_B0.weight`` … (m, r), ``.lora_route.weight`` (K, n).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.parts import collect, fitted
from ..projections import Projection, Target, Wish
from ..updates.contract import Update
from ..updates.mixture import mixed
from .file_form import Arrays, Form, columns
from .random_factors import Parts, Recipe, Spec, kaiming, pair, pair_null
from .routed import loaders_of, note


def read(source: Source) -> Found | None:
    """HydraLoRA, in our layout and its authors'."""
    found, rest = collect(source, "hydralora_(A|B|route)")
    if not found and source.has(r"\.lora_B\d+(\.|$)"):
        found, rest = collect(source, r"lora_(A|B\d+|route)")
    if not found:
        return None
    loaders: dict[str, Loader] = {}
    for module, parts in found.items():
        loaders |= _hydra(source, module, parts)
    return Found("hydralora", loaders, rest, [note(source, "HydraLoRA")])


def _hydra(source: Source, module: str, parts: Mapping[str, str]) -> dict[str, Loader]:
    count = sum(name.startswith("lora_B") for name in parts)
    if count:
        experts = {f"B{k}": f"lora_B{k} (m, r)" for k in range(count)}
        keys, sizes = fitted(source, parts, A="lora_A (r, n)", **experts, route=f"lora_route ({count}, n)")
    else:
        shapes = {"A": "hydralora_A (r, n)", "B": "hydralora_B (K, m, r)", "route": "hydralora_route (K, n)"}
        keys, sizes = fitted(source, parts, **shapes)
        count = sizes["K"]
    source.check_rank(module, keys["A"], sizes["r"])
    A, route = keys.pop("A"), keys.pop("route")
    factors = {"A": [A], "B": [*keys.values()], "route": route}
    return loaders_of(source, module, factors, count, "hydralora", source.scaling(module, sizes["r"]))


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    pairs = [pair(spec, rng, m, n) for _ in range(spec.blocks)]
    return {"A": pairs[0][1], "B": np.stack([B for B, _ in pairs]), "route": kaiming(rng, (spec.blocks, n))}


def from_parts(a: Arrays, scaling: float, _: str) -> Update:
    return mixed(list(a["B"]), [a["A"]], "mean", method="hydralora", scaling=scaling, router=a["route"].size)


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    """Experts that are all the same, so that the routing does not matter."""
    B, A, captured = target.pair(wish.r)
    return {"A": A, "B": np.stack([B] * wish.blocks), "route": np.zeros((wish.blocks, A.shape[1]))}, captured


FORMS = {
    "hydralora": Form(
        {"A": "hydralora_A", "B": "hydralora_B", "route": "hydralora_route"},
        from_parts,
        lambda a: columns(a["A"]),
        lambda a: {"num_experts": a["B"].shape[0]},
    )
}
RECIPES = {"hydralora": Recipe(random)}
NULLS = {"hydralora": pair_null()}  # sums and stacks of Gaussian B_k are Gaussian, and A is one
NEAREST = {"hydralora": Projection(nearest)}
