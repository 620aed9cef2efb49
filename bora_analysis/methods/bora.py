"""BoRA (arXiv 2508.06953): factors that are cut into blocks.

Ours: ``<module>.bora_A`` (r, n), ``.bora_B`` (m, r), ``.bora_sigma`` (b, b, r), σ raw as trained. A convolution's A is
(r, channels, kernel …), an embedding's is named ``.bora_embedding_A`` (r, V), as in PEFT's LoRA. The authors' likely
layout, a PEFT LoRA pair with one tensor (b, b, r) beside it, is read in :mod:`bora_analysis.methods.lora`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from ..catalogue import ACTIVATIONS
from ..files.adapter_file import Found, Loader, Source, match_pattern, of_layer
from ..files.errors import AdapterError
from ..files.parts import collect, need
from ..linalg import Array
from ..projections import Projection, Target, Wish
from ..updates.blocks import bora
from ..updates.checks import check_blocks
from ..updates.contract import FactorError, Facts, Update
from .file_form import Form, columns
from .pairs import Pair, check_pair
from .random_factors import Parts, Recipe, Spec, kaiming, pair


def read(source: Source) -> Found | None:
    """BoRA in our own layout."""
    return read_blocks(source, "bora", ("B", "sigma"), bora_loader)


def read_blocks(
    source: Source, kind: str, parts: tuple[str, ...], make: Callable[[Source, str, Mapping[str, str]], Loader]
) -> Found | None:
    """A method's own layout: ``<module>.<kind>_A``, or ``_embedding_A``, and the other parts."""
    found, rest = collect(source, rf"{kind}_((embedding_)?A|{'|'.join(parts)})")
    if not found:
        return None
    loaders = {}
    for module, own in found.items():
        A = next((name for name in own if "embedding_A" in name), f"{kind}_A")
        keys = need(source, own, A, *(f"{kind}_{part}" for part in parts))
        loaders[module] = make(source, module, dict(zip(("A", *parts), keys, strict=True)))
    return Found(kind, loaders, rest, [])


def bora_loader(source: Source, module: str, keys: Mapping[str, str]) -> Loader:
    """Check the shapes of one BoRA module and return its loader."""
    A, B, sigma = (source.tensors.shape(keys[part]) for part in ("A", "B", "sigma"))
    if len(A) > 2:
        for key in (keys["A"], keys["B"]):
            source.check_factor(key)
        r = A[0]
        source.expect(len(B) == 2 and B[1] == r, keys["B"], f"(m, {r}): bora_A is a convolution of shape {A}")
        source.check_rank(module, keys["A"], r)
    else:
        r, _ = check_pair(source, module, Pair(keys["A"], keys["B"], False))
    source.check_factor(keys["sigma"])
    b = sigma[0] if sigma else 0
    source.expect(sigma == (b, b, r), keys["sigma"], f"(b, b, r) with r = {r}")
    try:
        check_blocks(b, B[0], prod(A[1:]))
    except FactorError as error:
        raise AdapterError(f"{source.path}: {keys['sigma']}: {error.message}") from None
    check_count(source, module, "num_blocks", keys["sigma"], b)
    build = partial(bora, scaling=source.scaling(module, r), activation=activation(source))
    return source.loader(keys, of_kind(build, keys["A"], kernel=A[2:]))


def of_kind(build: Callable[..., Update], key: str, *, kernel: tuple[int, ...]) -> Callable[..., Update]:
    """The builder for a layer that may be a convolution with that kernel, or an embedding, which the key of A tells."""

    def made(A: Array, **others: Any) -> Update:
        update: Any = build(A=A.reshape(*A.shape[: A.ndim - len(kernel) - 1], -1), **others)
        facts: Facts = update.facts
        if "embedding_A" in key:  # A is looked up, not multiplied
            m, b = facts.out_features, facts.blocks
            macs = facts.r * (m + b if facts.method == "bora" else m // b)
            return replace(update, facts=replace(facts, kind="embedding", macs_per_token=macs))
        return of_layer(update, kernel)

    return made


def activation(source: Source) -> str:
    """How Σ comes from the stored σ: as the caller says, else as the configuration says, else eq. 5."""
    name = source.activation or (source.config or {}).get("activation") or "exp-norm"
    if name not in ACTIVATIONS:
        raise AdapterError(f"{source.path}: activation {name!r} is unknown; expected one of {', '.join(ACTIVATIONS)}")
    return name


def check_count(source: Source, module: str, name: str, key: str, count: int) -> None:
    told: Any = (source.settings(module) or {}).get(name)
    if isinstance(told, Mapping):
        told = match_pattern(source, told, module)
    if isinstance(told, int) and told != count:
        raise AdapterError(
            f"{source.path}: {key} has {count} blocks (shape {source.tensors.shape(key)}) but the configuration says "
            f"{name} = {told} for {module}; correct one of them"
        )


def random(spec: Spec, rng: np.random.Generator, m: int, n: int) -> Parts:
    b = spec.blocks
    if spec.kind == "decay":  # each block orthonormal, so that σ(ΔW) = σ(Σ') up to the slots' scales
        pairs = [pair(spec, rng, m // b, n // b) for _ in range(b)]
        B, A = np.concatenate([B for B, _ in pairs]), np.concatenate([A for _, A in pairs], axis=1)
    else:
        B, A = pair(spec, rng, m, n)
    return {"B": B, "A": A, "sigma": kaiming(rng, (b, b, spec.r), fan_in=b * spec.r)}


def nearest(target: Target, wish: Wish) -> tuple[Parts, float]:
    from ..projections.block_products import nearest  # here: reading does without

    return nearest(target, wish)


FORMS = {
    "bora": Form(
        {"A": "bora_A", "B": "bora_B", "sigma": "bora_sigma"},
        lambda a, scaling, how: bora(a["B"], a["A"], a["sigma"], scaling=scaling, activation=how),
        lambda a: columns(a["A"]),
        lambda a: {"num_blocks": a["sigma"].shape[0]},
    )
}
RECIPES = {"bora": Recipe(random)}
NEAREST = {"bora": Projection(nearest, kind="local")}
