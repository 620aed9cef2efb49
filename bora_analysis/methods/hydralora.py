"""HydraLoRA (arXiv 2404.19245), y += s Σ_k softmax(route x)_k B_k A x.

Ours: ``<module>.hydralora_A`` (r, n), ``.hydralora_B`` (K, m, r), ``.hydralora_route`` (K, n). Its authors':
``.lora_A.weight`` (r, n), ``.lora_B0.weight`` … (m, r), ``.lora_route.weight`` (K, n).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.errors import AdapterError
from ..files.keys import module_path
from ..files.parts import incomplete
from ..updates.contract import Update
from ..updates.mixture import mixed
from .file_form import Arrays, Form, columns
from .random_factors import Parts, Recipe, Spec, kaiming, pair
from .routed import loaders_of, note

_NAME = r"(\.(?P<name>[^.]+?))??"
_OURS = re.compile(rf"(?P<module>.+)\.hydralora_(?P<part>A|B|route){_NAME}(\.weight)?")
_HYDRA = re.compile(rf"(?P<module>.+)\.lora_(?P<part>A|B\d+|route){_NAME}(\.weight)?")


def read(source: Source) -> Found | None:
    """HydraLoRA, in our layout and its authors'."""
    keys = source.tensors.keys()
    if any(_OURS.fullmatch(module_path(key)) for key in keys):
        pattern = _OURS
    elif any(re.search(r"\.lora_B\d+(\.|$)", key) for key in keys):
        pattern = _HYDRA
    else:
        return None
    found: dict[str, dict[str, str]] = defaultdict(dict)
    rest = []
    for key in keys:
        hit = pattern.fullmatch(module_path(key))
        if not hit:
            rest.append(key)
        elif hit["part"] in found[hit["module"]]:
            raise AdapterError(f"{source.path}: {key}: several adapters in one file; save one at a time")
        else:
            found[hit["module"]][hit["part"]] = key
    loaders: dict[str, Loader] = {}
    for module, parts in found.items():
        loaders |= _hydra(source, module, parts)
    return Found("hydralora", loaders, rest, [note(source, "HydraLoRA")])


def _hydra(source: Source, module: str, parts: Mapping[str, str]) -> dict[str, Loader]:
    numbered = [f"B{k}" for k in range(sum(name[0] == "B" and name != "B" for name in parts))]
    names = numbered or ["B"]
    missing = [name for name in ("A", *names, "route") if name not in parts]
    if missing:
        key = next(iter(parts.values()))
        raise incomplete(source, key, f"{'hydralora' if 'hydralora_' in key else 'lora'}_{missing[0]}")
    A, route, B = parts["A"], parts["route"], [parts[name] for name in names]
    for key in (A, route, *B):
        source.check_factor(key)
    shape = source.tensors.shape(A)
    source.expect(len(shape) == 2, A, "(r, n)")
    r, n = shape
    shapes = [source.tensors.shape(key) for key in B]
    if names == ["B"]:
        source.expect(len(shapes[0]) == 3 and shapes[0][2] == r, B[0], f"(K, m, {r}) from A {shape}")
        count = shapes[0][0]
    else:
        for key, own in zip(B, shapes, strict=True):
            source.expect(own == (shapes[0][0], r), key, f"({shapes[0][0]}, {r}) from A {shape} and the first B")
        count = len(B)
    source.expect(source.tensors.shape(route) == (count, n), route, f"({count}, {n}): {count} experts")
    source.check_rank(module, A, r)
    keys = {"A": [A], "B": B, "route": route}
    return loaders_of(source, module, keys, count, "hydralora", source.scaling(module, r))


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    pairs = [pair(spec, rng, m, n) for _ in range(spec.blocks)]
    return {"A": pairs[0][1], "B": np.stack([B for B, _ in pairs]), "route": kaiming(rng, (spec.blocks, n))}


def from_parts(a: Arrays, scaling: float, _: str) -> Update:
    return mixed(list(a["B"]), [a["A"]], "mean", method="hydralora", scaling=scaling, router=a["route"].size)


FORMS = {
    "hydralora": Form(
        {"A": "hydralora_A", "B": "hydralora_B", "route": "hydralora_route"},
        from_parts,
        lambda a: columns(a["A"]),
        lambda a: {"num_experts": a["B"].shape[0]},
    )
}
RECIPES = {"hydralora": Recipe(random)}
