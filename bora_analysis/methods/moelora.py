"""MoELoRA (arXiv 2310.18339), y += s Σ_k gate_k B_k A_k x.

Ours: ``<module>.moelora_A`` (K, r, n), ``.moelora_B`` (K, m, r), ``.moelora_route`` (K, n), with the gates
softmax(route x), and s = α/r with the r of one expert. Its authors', with gates by task:
``.lora_A.loraA.{k}.mlp.weight`` (r/K, n) and the same tensor again without ``.mlp``, ``.lora_B.loraB.{k}…`` (m, r/K),
``.lora_task_embedding.weight`` (tasks, d), ``.lora_gate.GateL.weight`` (K, d), and s = α/r with the r of all experts
together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..files.adapter_file import Found, Loader, Source
from ..files.keys import module_path
from ..files.parts import collect, fitted
from ..linalg import Array
from ..patterns import late
from ..projections import Projection, Target, Wish
from ..updates.contract import Update
from ..updates.mixture import mixed
from .file_form import Arrays, Form
from .random_factors import NoNullError, Null, Parts, Recipe, Sizes, Spec, kaiming, pair, pair_core
from .routed import loaders_of, note

_MOE = late(
    r"(?P<module>.+)\.lora_([AB])(\.(?P<name>[^.]+?))??\.(?P<part>lora[AB]\.\d+)(\.mlp)?\.weight"
    r"|(?P<router>.*?)\.?lora_(?P<gate>task_embedding|gate)(\.[^.]+?)??(\.GateL)?\.weight"
)


def read(source: Source) -> Found | None:
    """MoELoRA, in our layout and its authors'."""
    ours, rest = collect(source, "moelora_(A|B|route)")
    if ours:
        loaders = {name: load for module, parts in ours.items() for name, load in _ours(source, module, parts).items()}
        return Found("moelora", loaders, rest, [note(source, "MoELoRA")])
    if not source.has(r"\.lora[AB]\.\d+\."):
        return None
    found: dict[str, dict[str, str]] = defaultdict(dict)
    rest = []
    for key in source.tensors.keys():  # noqa: SIM118  no mapping
        hit = _MOE.fullmatch(module_path(key))
        if not hit:
            rest.append(key)
        elif hit["gate"]:
            found[hit["router"]][hit["gate"]] = key
        else:
            # The same tensor stands under two names.
            found[hit["module"]].setdefault(hit["part"], key)
    loaders = {}
    for module, parts in found.items():
        if set(parts) <= {"gate", "task_embedding"}:  # a router shared by the layers
            rest += parts.values()
        else:
            loaders |= _moe(source, module, parts)
    return Found("moelora", loaders, rest, [note(source, "MoELoRA")])


def _ours(source: Source, module: str, parts: Mapping[str, str]) -> dict[str, Loader]:
    shapes = {"A": "moelora_A (K, r, n)", "B": "moelora_B (K, m, r)", "route": "moelora_route (K, n)"}
    keys, sizes = fitted(source, parts, **shapes)
    source.check_rank(module, keys["A"], sizes["r"])
    factors = {"A": [keys["A"]], "B": [keys["B"]], "route": keys["route"]}
    return loaders_of(source, module, factors, sizes["K"], "moelora", source.scaling(module, sizes["r"]))


def _moe(source: Source, module: str, parts: Mapping[str, str]) -> dict[str, Loader]:
    count = sum(name.startswith("loraA") for name in parts)
    more = sum(name.startswith("loraB") for name in parts)
    shapes = {f"A{k}": f"loraA.{k} (r/K, n)" for k in range(max(count, more))}
    shapes |= {f"B{k}": f"loraB.{k} (m, r/K)" for k in range(max(count, more))}
    found, sizes = fitted(source, parts, **shapes)
    A, B = ([key for name, key in found.items() if name[0] == side] for side in "AB")
    r = count * sizes["r/K"]
    source.check_rank(module, A[0], r)
    keys: dict[str, Any] = {"A": A, "B": B}
    if "gate" in parts:
        source.check_factor(parts["gate"])
        keys["route"] = parts["gate"]
    extra_count = sum(int(np.prod(source.tensors.shape(parts[k]))) for k in ("gate", "task_embedding") if k in parts)
    return loaders_of(source, module, keys, count, "moelora", source.scaling(module, r), extra_count)


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    pairs = [pair(spec, rng, m, n) for _ in range(spec.blocks)]
    B, A = (np.stack(side) for side in zip(*pairs, strict=True))
    return {"A": A, "B": B, "gate": kaiming(rng, (spec.blocks, n))}


def from_parts(a: Arrays, scaling: float, _: str) -> Update:
    return mixed(list(a["B"]), list(a["A"]), "mean", method="moelora", scaling=scaling, router=a["gate"].size)


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    """The mean of the experts, under equal routing, has rank Kr."""
    K, (m, n) = wish.blocks, target.shape
    B, A, captured = target.pair(K * wish.r)
    parts = {"A": A.reshape(K, wish.r, n), "B": K * B.reshape(m, K, wish.r).transpose(1, 0, 2)}
    return {**parts, "gate": np.zeros((K, n))}, captured


FORMS = {
    "moelora": Form(  # the layout of its authors; the gate sees the layer's input
        {"A": "lora_A.loraA.{k}.mlp.weight", "B": "lora_B.loraB.{k}.mlp.weight", "gate": "lora_gate.GateL.weight"},
        from_parts,
        lambda a: a["A"].shape[0] * a["A"].shape[1],
        lambda a: {"expert_num": a["A"].shape[0]},
    )
}


def null_cores(sizes: Sizes, rng: np.random.Generator) -> list[Array]:
    """The mean of the experts is one product, of all their factors beside each other."""
    m, n, inner = sizes.m, sizes.n, sizes.rank_bound  # min(m, n, Kr)
    if inner == min(m, n) or sizes.parameters < (m + n) * inner:
        raise NoNullError("has experts whose number its row does not tell, or is a stack of them")
    return [pair_core(rng, m, n, inner)[None]]


RECIPES = {"moelora": Recipe(random)}
NULLS = {"moelora": Null(null_cores)}
NEAREST = {"moelora": Projection(nearest, useful=lambda m, n, K: -(-min(m, n) // K))}
